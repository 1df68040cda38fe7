"""DiffUp: few-shot segmentation as conditional diffusion over backbone-agnostic priors (arXiv 2407.16182)."""
