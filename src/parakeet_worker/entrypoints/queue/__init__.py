"""RunPod's queue: jobs are taken, answered and delivered, and none is lost on the way."""
