"""The fields of a LoRAFineTune that this operator knows: written by hack/docs from the definition."""

FIELDS = frozenset(
    """
    spec spec.activeDeadlineSeconds spec.checkpoint spec.checkpoint.intervalSeconds spec.checkpoint.intervalSteps
    spec.checkpoint.keep spec.checkpoint.volumeClaimName spec.dataset spec.dataset.chatTemplate spec.dataset.columns
    spec.dataset.format spec.dataset.maxValidationRows spec.dataset.secretRef spec.dataset.secretRef.name
    spec.dataset.split spec.dataset.templateArguments spec.dataset.uri spec.dataset.validationFraction
    spec.dataset.validationUri spec.lora spec.lora.alpha spec.lora.alphaPattern spec.lora.dropout
    spec.lora.excludeModules spec.lora.init spec.lora.layerIndices spec.lora.layers spec.lora.modulesToSave
    spec.lora.rank spec.lora.rankPattern spec.lora.scaling spec.lora.targetModules spec.lora.targetParameters
    spec.lora.variant spec.maxRetries spec.model spec.model.secretRef spec.model.secretRef.name spec.model.uri
    spec.output spec.output.merge spec.output.mergePrecision spec.output.secretRef spec.output.secretRef.name
    spec.output.uri spec.pendingTimeoutSeconds spec.preflight spec.quantization spec.resources spec.resources.cpu
    spec.resources.ephemeralStorage spec.resources.extendedResources spec.resources.gpuMinMemoryGiB
    spec.resources.gpuProducts spec.resources.gpuResourceName spec.resources.gpus spec.resources.memory
    spec.resources.nodes spec.resources.sharedMemory spec.resumeFrom spec.resumeFrom.name spec.scheduling
    spec.scheduling.affinity spec.scheduling.nodeSelector spec.scheduling.priorityClassName
    spec.scheduling.runtimeClassName spec.scheduling.tolerations spec.scheduling.tolerations.effect
    spec.scheduling.tolerations.key spec.scheduling.tolerations.operator spec.scheduling.tolerations.tolerationSeconds
    spec.scheduling.tolerations.value spec.suspend spec.tracking spec.tracking.kind spec.tracking.project
    spec.tracking.secretRef spec.tracking.secretRef.name spec.training spec.training.activationCheckpointing
    spec.training.earlyStoppingPatience spec.training.effectiveBatchSize spec.training.epochs spec.training.evalSteps
    spec.training.kernels spec.training.learningRate spec.training.lossOn spec.training.maxGradNorm
    spec.training.maxSequenceLength spec.training.maxSteps spec.training.microBatchSize spec.training.optimizer
    spec.training.packing spec.training.precision spec.training.schedule spec.training.seed spec.training.warmupRatio
    spec.training.weightDecay spec.ttlSecondsAfterFinished status status.activeSince status.activeUntil status.advice
    status.advice.code status.advice.evidence status.advice.message status.advice.severity status.artifact
    status.artifact.baseModel status.artifact.baseRevision status.artifact.digest status.artifact.format
    status.artifact.rank status.artifact.servable status.artifact.serving status.artifact.servingNeeds
    status.artifact.sizeBytes status.artifact.uri status.attempt status.checkpoint status.checkpoint.step
    status.checkpoint.uri status.completionTime status.conditions status.conditions.lastTransitionTime
    status.conditions.message status.conditions.observedGeneration status.conditions.reason status.conditions.status
    status.conditions.type status.dataset status.dataset.duplicateSamples status.dataset.learnedAnswers
    status.dataset.longestTokens status.dataset.skippedAnswers status.dataset.skippedSamples status.dataset.splitSamples
    status.dataset.targetTokens status.dataset.trainSamples status.dataset.trainTokens status.dataset.truncatedSamples
    status.dataset.truncatedTokens status.dataset.unendedAnswers status.dataset.validationSamples status.jobName
    status.observedGeneration status.plan status.plan.activationBytes status.plan.activationCheckpointing
    status.plan.adapterBytes status.plan.adapterFileBytes status.plan.alternatives status.plan.alternatives.change
    status.plan.alternatives.fits status.plan.alternatives.peakBytes status.plan.alternatives.tokensPerSecond
    status.plan.checkpointBytes status.plan.claimBytes status.plan.device status.plan.deviceBytes
    status.plan.deviceMemory status.plan.fits status.plan.microBatchTokens status.plan.otherBytes status.plan.peakBytes
    status.plan.peakMemory status.plan.podMemory status.plan.podMemoryBytes status.plan.price status.plan.pricePerHour
    status.plan.quantization status.plan.reason status.plan.seconds status.plan.selectiveCheckpointing
    status.plan.sharded status.plan.shardedOver status.plan.spread status.plan.tokensPerSecond
    status.plan.trainableParameters status.plan.weightBytes status.podName status.preflight status.preflight.dataset
    status.preflight.dataset.duplicateSamples status.preflight.dataset.fingerprint status.preflight.dataset.firstRow
    status.preflight.dataset.format status.preflight.dataset.longestTokens status.preflight.dataset.p50Tokens
    status.preflight.dataset.p95Tokens status.preflight.dataset.sampled status.preflight.dataset.sharedSamples
    status.preflight.dataset.skippedSamples status.preflight.dataset.targetTokens status.preflight.dataset.tokens
    status.preflight.dataset.tokensStandardError status.preflight.dataset.trainSamples
    status.preflight.dataset.truncatedSamples status.preflight.dataset.truncatedTokens
    status.preflight.dataset.validationRows status.preflight.dataset.validationSamples status.preflight.model
    status.preflight.model.adapted status.preflight.model.known status.preflight.model.linearModules
    status.preflight.model.modelType status.preflight.model.parameters status.preflight.model.revision
    status.preflight.model.targetModules status.preflight.model.trainableParameters status.preflight.model.weightBytes
    status.preflight.output status.progress status.progress.checkpointStep status.progress.checkpointTime
    status.progress.epoch status.progress.estimatedRemainingSeconds status.progress.eta status.progress.evalLoss
    status.progress.lastUpdateTime status.progress.learningRate status.progress.loss status.progress.peakMemory
    status.progress.peakMemoryBytes status.progress.percentage status.progress.phase status.progress.resumedStep
    status.progress.step status.progress.steps status.progress.tokensPerSecond status.progress.totalSteps
    status.resolved status.resolved.activationCheckpointing status.resolved.alpha status.resolved.attention
    status.resolved.computeDtype status.resolved.datasetFingerprint status.resolved.datasetFormat status.resolved.device
    status.resolved.dropout status.resolved.effectiveBatchSize status.resolved.epochs status.resolved.evalSteps
    status.resolved.gradientAccumulationSteps status.resolved.image status.resolved.init status.resolved.kernels
    status.resolved.kernelsLeftOut status.resolved.kernelsUnchecked status.resolved.learningRate status.resolved.lossOn
    status.resolved.maxGradNorm status.resolved.maxSequenceLength status.resolved.maxSteps
    status.resolved.maxValidationRows status.resolved.microBatchSize status.resolved.microBatchTokens
    status.resolved.modelClass status.resolved.modelRevision status.resolved.modelType status.resolved.optimizer
    status.resolved.packing status.resolved.pod status.resolved.pod.affinity status.resolved.pod.cacheClaim
    status.resolved.pod.checkpointClaim status.resolved.pod.cpu status.resolved.pod.environment
    status.resolved.pod.gpuResourceName status.resolved.pod.memory status.resolved.pod.nodeSelector
    status.resolved.pod.priorityClassName status.resolved.pod.queue status.resolved.pod.runtimeClassName
    status.resolved.pod.tolerations status.resolved.pod.tolerations.effect status.resolved.pod.tolerations.key
    status.resolved.pod.tolerations.operator status.resolved.pod.tolerations.tolerationSeconds
    status.resolved.pod.tolerations.value status.resolved.pod.ttlSecondsAfterFinished status.resolved.precision
    status.resolved.processes status.resolved.quantization status.resolved.rank status.resolved.scaling
    status.resolved.schedule status.resolved.seed status.resolved.selectiveCheckpointing status.resolved.sharded
    status.resolved.shardedOver status.resolved.targetModules status.resolved.totalParameters
    status.resolved.trainableParameters status.resolved.validationFraction status.resolved.variant
    status.resolved.warmupRatio status.resolved.weightDecay status.results status.results.bestStep
    status.results.durationSeconds status.results.estimatedPeakMemoryBytes status.results.estimatedSeconds
    status.results.evalLossAfter status.results.evalLossAfterStandardError status.results.evalLossBefore
    status.results.evalLossBeforeStandardError status.results.heldOut status.results.improvementStandardError
    status.results.mergeFailure status.results.mergedExpectedLoss status.results.mergedLoss
    status.results.microBatchFill status.results.peakMemoryBytes status.results.resumedStep status.results.steps
    status.results.stoppedEarly status.results.tokensPerSecond status.results.trainLoss status.results.trainedTokens
    status.results.verification status.results.verification.difference status.results.verification.loss
    status.results.verification.noise status.results.verification.tolerance status.retries status.retries.preempted
    status.retries.used status.runSeconds status.startTime status.stateSince
    """.split()
)
