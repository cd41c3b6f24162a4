"""What accelerators can do at most, from their makers' data sheets: dense bf16 tensor operations, without sparsity."""

# FLOP/s. The longer name first where one is part of another: names are looked up in what CUDA calls the device.
PEAK_FLOPS: dict[str, float] = {
    "B200": 2250e12, "GH200": 989e12, "H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "L40": 181e12,
    "L4": 121e12, "A10G": 70e12, "A40": 150e12, "A6000": 155e12, "RTX 4090": 165e12, "V100": 125e12,
}  # fmt: skip


def peak_flops(device: str) -> float | None:
    """Peak of a device by its name, such as "NVIDIA H100 80GB HBM3"; None where it is not known."""
    return next((flops for name, flops in PEAK_FLOPS.items() if name in device), None)


def training_flops(parameters: int, layers: int, hidden: int, sequence_length: int) -> int:
    """Floating-point operations that training takes for each token: six for each parameter, and attention's own, which
    are 12 x layers x hidden x length, halved because it is causal (Chowdhery et al. 2022, appendix B)."""
    return 6 * parameters + 6 * layers * hidden * sequence_length
