"""Pages and copies that are made from one source each, so that they cannot disagree with it.

docs/api-reference.md                                   from crds/lorafinetunes.yaml
docs/advice.md                                          from trainer_image/lora_trainer/plan/hints.py
docs/states.md                                          from state_tables.py, vocabulary.py and decide/states.py
docs/metrics.md                                         from the metrics' registries
helm/lora-finetune-operator/README.md                   from the chart's Chart.yaml, values.yaml and values.schema.json
helm/lora-finetune-operator/files/lorafinetunes.yaml    from crds/lorafinetunes.yaml
"""
