"""Triton kernels, each file: kernels, then launcher. 16-bit loads are upcast to float32 at once."""

# Said at every launch: left to Triton, the default changes from on to off in 3.10, and the bits
# of the results with it.
LAUNCH_OPTIONS = {"enable_fp_fusion": True}
