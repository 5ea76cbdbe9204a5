"""Where the curves of another tool go."""

from lora_client.foreign.mapping import Conversion
from lora_client.views.words import known


def report(c: Conversion) -> None:
    """Transformers' list of trackers, of which a run has one."""
    value = c.get("report_to")
    kinds = [value] if isinstance(value, str) else list(value or ())
    for kind in kinds:
        ours = known("spec.tracking.kind", kind)
        if ours and "tracking.kind" not in c.fields:
            c.set("tracking.kind", ours, "report_to")
            if ours == "WandB":
                c.to_fill.append("tracking.secretRef: the name of a Secret with the key WANDB_API_KEY")
        elif kind not in ("none", "all"):
            c.left.append(("report_to", str(kind), "tracking.kind is one of TensorBoard, MLflow and WandB"))


def wandb(c: Conversion) -> None:
    """Axolotl's project of Weights and Biases."""
    if c.get("wandb_project"):
        c.set("tracking.kind", "WandB", "wandb_project")
        c.set("tracking.project", str(c.get("wandb_project")), "wandb_project")
        c.to_fill.append("tracking.secretRef: the name of a Secret with the key WANDB_API_KEY")


def mlflow(c: Conversion) -> None:
    """Axolotl's experiment of MLflow."""
    if not c.truth("use_mlflow") and not c.get("mlflow_experiment_name"):
        return
    if "tracking.kind" in c.fields:
        c.leave("use_mlflow", "a run has one tracker")
        c.leave("mlflow_experiment_name", "a run has one tracker")
        return
    c.set("tracking.kind", "MLflow", "use_mlflow", "mlflow_experiment_name")
    if c.get("mlflow_experiment_name"):
        c.set("tracking.project", str(c.get("mlflow_experiment_name")), "mlflow_experiment_name")
