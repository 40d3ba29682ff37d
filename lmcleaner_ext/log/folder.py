"""What lies in a log's folder.

LOG/steps.lmc      the ring: one slot per step (docs/log-format.md)
LOG/samples.lmc    the ring of tracked samples' gradients (mode="sample"), one slot or more per (step, id)
LOG/anchors/       full-precision parameters and optimizer state
LOG/uses.bin       which step used which id, for the whole run; sorted copies in LOG/uses/
LOG/head.json      written when the trainer closes the log: the step reached, and the digest of its weights
"""

STEPS, SAMPLES, ANCHORS, USES, HEAD = "steps.lmc", "samples.lmc", "anchors", "uses.bin", "head.json"
MANIFEST_VERSION = 1  # of the JSON in the ring of steps
