"""RunPod queue worker."""
