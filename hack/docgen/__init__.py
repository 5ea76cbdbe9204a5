"""Pages and copies that are made from one source each, so that they cannot disagree with it.

helm/lora-finetune-operator/files/lorafinetunes.yaml    from the classes of lora_trainer.spec (see docgen.crd);
                                                        crds/lorafinetunes.yaml is a link to it
docs/api-reference.md                                   from the same
docs/states.md                                          from the tables of this package and decide/states.py
docs/metrics.md                                         from the metrics' registries
helm/lora-finetune-operator/README.md                   from the chart's Chart.yaml, values.yaml and values.schema.json
"""
