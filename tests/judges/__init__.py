"""Third parties as builders and judges: files by peft, diffusers and lycoris, and what their loaders make of ours."""
