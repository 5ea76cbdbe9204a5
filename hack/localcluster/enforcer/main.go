// Enforces network policies in the network namespace where it runs, by the reference implementation of the API: what it
// reads from standard input takes the place of a cluster.
package main

import (
	"context"
	"encoding/json"
	"log"
	"os"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes/fake"
	"sigs.k8s.io/kube-network-policies/pkg/networkpolicy"
)

type cluster struct {
	Node       string
	Namespaces []corev1.Namespace
	Pods       []corev1.Pod
	Policies   []networkingv1.NetworkPolicy
}

func main() {
	var given cluster
	if err := json.NewDecoder(os.Stdin).Decode(&given); err != nil {
		log.Fatal(err)
	}
	objects := []runtime.Object{}
	for i := range given.Namespaces {
		objects = append(objects, &given.Namespaces[i])
	}
	for i := range given.Pods {
		objects = append(objects, &given.Pods[i])
	}
	for i := range given.Policies {
		objects = append(objects, &given.Policies[i])
	}
	client := fake.NewSimpleClientset(objects...)
	factory := informers.NewSharedInformerFactory(client, 0)
	controller, err := networkpolicy.NewController(
		client,
		factory.Networking().V1().NetworkPolicies(),
		factory.Core().V1().Namespaces(),
		factory.Core().V1().Pods(),
		nil, nil, nil, nil,
		networkpolicy.Config{NodeName: given.Node},
	)
	if err != nil {
		log.Fatal(err)
	}
	ctx := context.Background()
	factory.Start(ctx.Done())
	log.Fatal(controller.Run(ctx))
}
