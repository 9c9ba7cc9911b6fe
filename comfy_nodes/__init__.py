"""ComfyUI nodes over `bwm_pipelines`: imagine the next image, verify it, select, explain, name the action."""
