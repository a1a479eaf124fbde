"""The two recipes of --recipe, as values of settings that are not given. Their figures: tests/benchmarks/RESULTS.md."""

# Masip et al., section 4: fresh replay images at every step, and the plain objective.
PAPER = dict(
    replay_pool=0,
    replay_pool_steps=50,
    replay_pool_balanced=False,
    prediction_type="epsilon",
    rescale_betas_zero_snr=False,
    snr_gamma=None,
)
BLOCK = 256  # images of the pool that are drawn at once at most, by all processes together
REUSE = 10  # how often an image of the pool is used, on average
LARGEST_POOL = 10_240  # images; the paper's tasks have 10,000 to 12,000
LARGEST_POOL_BYTES = 500_000_000  # of uint8 pixels, on the device and in every checkpoint


def best_recipe(steps: int, batch_size: int, most_images: int = LARGEST_POOL) -> dict:
    """A replay pool, v-prediction, min-SNR weighting and averaged weights, for a task of any length.

    The pool takes at most as many passes of the teacher as the paper's two for every replay image: 20 DDIM steps for
    every tenth. The average is over about an eighth of the task.

    Args:
        steps: optimizer steps of a task.
        batch_size: replay images of a step.
        most_images: how many images of the pool fit in memory.
    """
    pool = max(1, min(steps * batch_size // REUSE, most_images, LARGEST_POOL))
    return dict(
        replay_pool=pool - pool % BLOCK if pool > BLOCK else pool,
        replay_pool_steps=2 * REUSE,
        prediction_type="v_prediction",
        snr_gamma=5.0,
        use_ema=True,
        ema_decay=min(0.9999, max(0.0, 1 - 8 / steps)),
    )
