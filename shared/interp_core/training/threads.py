"""CPU threads, set once, from params: results depend on their number in the last digits."""


def use_threads(n: int) -> None:
    """Let torch compute with n threads."""
    import torch

    torch.set_num_threads(n)
