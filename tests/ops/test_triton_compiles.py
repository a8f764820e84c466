"""Every Triton kernel compiles to machine code for the GPUs that are promised, without one."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

# Types of the kernels' arguments; those of the tensors' own dtype and the wider one are filled in.
NARROW = {"source", "target"}
WIDE = {"down", "up", "reduced", "scales", "weights", "partials", "memory", "J", "V", "w", "out"}
OTHERS = {
    "chunks": "*i64", "firsts": "*i64",
    "segments": "*i64", "keys": "*i64", "offsets": "*i64", "rows": "*i32", "positions": "*i32",
    "shares": "*fp64", "layer": "i64",
}  # fmt: skip
BLOCKS = {"WIDTH": 64, "BLOCK_K": 32, "BLOCK_C": 128}
TOKENS = {"SEGMENTS": 8, "BLOCK_M": 32, **BLOCKS}
LORA = [
    ("tokens_kernel", {
        **TOKENS, "SCALED": scaled, "DROP_SOURCE": not drops_target, "DROP_TARGET": drops_target,
        "HAS_SOURCE": has_source, "HAS_TARGET": has_target,
    })
    for scaled, drops_target, has_source, has_target in (
        ("on use", False, True, True), ("stored", True, True, True),
        ("no", False, True, False), ("no", True, False, True),
    )
] + [
    ("chunks_kernel", {**TOKENS, "CHUNK": 512, "DROPOUT": True}),
    ("sum_kernel", {**BLOCKS, "CHUNK": 512, "SCALED": True, "SQUARE": True}),
]  # fmt: skip
GRAMIAN = [
    (name, {**constants, "BLOCK_T": 16, "SYMMETRIC": symmetric})
    for symmetric in (True, False)
    for name, constants in (
        ("chunk_kernel", {"BLOCK_P": 128, "FOLD": 1024}), ("sum_kernel", {"BLOCK": 64}),
    )
]  # fmt: skip
COMBINE = [("combine_kernel", {"BLOCK": 1024, "SHARES": 8})]
SUMS = {"partials": "*fp64", "out": "*fp64"}  # of the Gramian, in any dtype of J


@pytest.mark.parametrize(("capability", "narrow"), [(80, "fp32"), (90, "bf16")])
def test_kernels_compile_to_machine_code(capability: int, narrow: str) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, __file__, str(capability), narrow]
    subprocess.run(command, env=environment, check=True)


def compile_all(capability: int, narrow: str) -> None:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from mtlcore.ops.triton import LAUNCH_OPTIONS, combine, gramian, lora

    known = {
        **OTHERS, **dict.fromkeys(NARROW, "*" + narrow), **dict.fromkeys(WIDE, "*fp32")
    }  # fmt: skip
    kernels = [
        (getattr(module, name), {**known, **types}, constants)
        for module, types, listed in (
            (lora, {}, LORA),
            (gramian, SUMS, GRAMIAN),
            (combine, {}, COMBINE),
        )
        for name, constants in listed
    ]
    for kernel, types, constants in kernels:
        name = kernel.__name__
        signature = {
            argument: "constexpr" if argument in constants else types.get(argument, "i32")
            for argument in kernel.arg_names
        }
        source = ASTSource(fn=kernel, signature=signature, constexprs=constants)
        target = GPUTarget("cuda", capability, 32)
        compiled = triton.compile(source, target=target, options=LAUNCH_OPTIONS)
        assert compiled.asm["cubin"], name
        assert compiled.metadata.shared <= 99 * 1024, name  # what any of these GPUs gives a block


if __name__ == "__main__":
    compile_all(int(sys.argv[1]), sys.argv[2])
