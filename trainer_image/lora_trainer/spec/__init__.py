"""The contract between operator and trainer. Standard library only, so that both sides import it at no cost.

config      what one training run has to do (`TrainConfig`, JSON in a ConfigMap)
resource    the whole spec of a LoRAFineTune, and `status` its status
api         what the API says of their fields, and those of `config`: the definition and the reference are made of it
reading     a manifest read by that
manifest    from a LoRAFineTune manifest to a `TrainConfig`, with every rule between fields
progress    what a running trainer answers at `/progress`
summary     what a finished trainer writes as its termination message
exit_codes  what its exit status means, and which of them are worth a retry
reasons     the vocabulary of conditions, events and metric labels
uri         the grammar of model, data set and output addresses
names       names derived from a run's uid
advice      a piece of advice as data: its code and the values of its sentences
serving     what servers can load of adapters
gpus        GPUs by name: memory, peak, bandwidth
release     the version of packages, images and chart
codec       strict JSON for the dataclasses above
"""
