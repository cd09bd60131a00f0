"""Tensors that travel with a base model and are no weight of its tables: averages, schedules, the VAE, counters."""

from __future__ import annotations

import re

VAE_PREFIXES = ("first_stage_model.", "vae.")

SCHEDULE = (
    r"(alphas_cumprod(_prev)?|betas|log_one_minus_alphas_cumprod|logvar|scale_factor"
    r"|posterior_(log_variance_clipped|variance|mean_coef[12])|ddim_\w+"
    r"|sqrt_(one_minus_)?alphas_cumprod|sqrt_recip(m1)?_alphas_cumprod"
    r"|(denoiser|model\.model_sampling)\.\w+|edm_vpred\.sigma_(min|max)|edm_mean|edm_std|v_pred|ztsnr)$"
)

# One row a sort: what it is, and the keys, as a pattern from their beginning.
COMPANIONS: tuple[tuple[str, str], ...] = (
    ("vae",          r"(first_stage_model|vae)\."),
    ("average",      r"model_ema\."),
    ("schedule",     SCHEDULE),
    ("positions",    r"(.*\.)?(position_ids|pos_(embed|encoder)\.pe)$"),
    ("positions",    r"(model\.)?(diffusion_model\.)?pos_embed(\.pos_embed)?$"),
    ("unused",       r"(model\.)?(diffusion_model\.)?(norm_final\.weight|y_embedder\.y_embedding|logvar_linear\.\w+)$"),
    ("temperature",  r"(.*\.)?logit_scale$"),
    ("rotary",       r"(.*\.)?rotary_emb\.inv_freq$"),
    ("tied",         r"(.*\.)?(encoder|decoder)\.embed_tokens\.weight$"),
    ("depth",        r"depth_model\."),
    ("quantisation", r"(.*\.)?(scaled_fp8|scale_weight|scale_input|weight_scale(_2|_inv)?|input_scale|comfy_quant)$"),
    ("counter",      r"(global_step|epoch|pytorch-lightning_version|state_dict)$"),
)  # fmt: skip
_PATTERNS = tuple((sort, re.compile(pattern)) for sort, pattern in COMPANIONS)


def companion(key: str) -> str | None:
    """What sort of companion a key is, or None where it is none."""
    return next((sort for sort, pattern in _PATTERNS if pattern.match(key)), None)
