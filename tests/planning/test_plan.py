"""What a compiled program is said to cost, against closed forms and against the same program without loops."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import planned_steps
import pytest

from gems_jax.linalg.orthonormal import orthonormal_columns

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

import plan  # noqa: E402

from planning.chips import CHIPS, chip_named, roofline  # noqa: E402
from planning.costs import Collective, Costs, costs_of, group_size  # noqa: E402
from planning.hlo import parse, shapes_of  # noqa: E402
from planning.training_step import for_platform  # noqa: E402


def program(entry, *others):
    """The text of a compiled program."""
    return "\n\n".join([*others, "ENTRY %main (a: f32[4]) -> f32[4] {\n" + entry.strip("\n") + "\n}"]) + "\n"


def compiled(function, *arguments):
    return jax.jit(function).lower(*arguments).compile().as_text()


# --- reading ----------------------------------------------------------------------------------------------------


def test_shapes_have_their_sizes_and_memories():
    found = shapes_of("(bf16[2,3]{1,0:T(8,128)(2,1)S(1)}, /*index=1*/pred[], s4[8]{0}, f8e4m3fn[4])")
    assert [(x.dims, x.bytes, x.memory) for x in found] == [((2, 3), 12, 1), ((), 1, 0), ((8,), 4, 0), ((4,), 4, 0)]
    with pytest.raises(ValueError, match="unknown type 'mystery'"):
        _ = shapes_of("mystery[3]")[0].bytes


def test_instructions_have_their_parts():
    text = program(
        """
  %a = f32[4]{0} parameter(0)
  %loop.1 = (s32[], f32[4]{0}) while(%tuple.2), condition=%c.1, body=%b.1, metadata={op_name="x" stack_frame_id=2}
  ROOT %out = f32[4]{0} get-tuple-element(%loop.1), index=1""",
        'FileNames\n1 "a.py"\n2 "b.py"\n\nFileLocations\n1 {file_name_id=2 line=3}\n\n'
        "StackFrames\n2 {file_location_id=1 parent_frame_id=1}",
    )
    found = parse(text)
    loop = found.computations[found.entry]["loop.1"]
    assert (loop.opcode, loop.operands, loop.source) == ("while", ("tuple.2",), "b.py")
    assert loop.called == {"condition": ("c.1",), "body": ("b.1",)}
    assert [x.dims for x in loop.shapes] == [(), (4,)]
    assert found.root("main").name == "out"


def test_what_is_no_program_is_refused():
    with pytest.raises(ValueError, match="no ENTRY computation"):
        parse("HloModule nothing")


# --- operations -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("out", "left", "right", "labels", "expected"),
    [
        ("[8,16]", "[8,32]", "[32,16]", "dim_labels=bf_io->bf", 2 * 8 * 32 * 16),
        # A batch of three products, and an outer one, as TPUs write them.
        ("[3,8,9]", "[3,8,7]", "[3,7,9]", "window={size=3 stride=2 lhs_dilate=3}, dim_labels=0bf_0io->0bf", 2 * 1512),
        ("[4,6,5]", "[4,3,1]", "[6,3,5]", "window={size=6 pad=5_5 rhs_reversal=1}, dim_labels=bf0_0io->b0f", 2 * 360),
        # A picture of 5 x 5 under a kernel of 3 x 3 without padding.
        ("[1,3,3,8]", "[1,5,5,2]", "[3,3,2,8]", "window={size=3x3}, dim_labels=b01f_01io->b01f", 2 * 9 * 9 * 2 * 8),
    ],
)
def test_operations_of_convolutions(out, left, right, labels, expected):
    text = program(f"""
  %l = f32{left} parameter(0)
  %r = f32{right} parameter(1)
  ROOT %c = f32{out} convolution(%l, %r), {labels}, operand_precision={{highest,highest}}""")
    assert costs_of(text).flops == {"highest": expected}


def test_operations_of_products_and_the_trip_counts_of_loops():
    x, w = jnp.ones((4, 8)), jnp.ones((3, 8, 8))
    body = lambda x, w: (jnp.tanh(jnp.matmul(x, w, precision="highest")), None)  # noqa: E731
    nested = lambda x, w: jax.lax.fori_loop(0, 5, lambda _, y: jax.lax.scan(body, y, w)[0], x)  # noqa: E731
    found = costs_of(compiled(nested, x, w))
    assert found.flops == {"highest": 5 * 3 * 2 * 4 * 8 * 8}
    batched = costs_of(
        compiled(lambda a, b: jnp.einsum("bij,bkj->bik", a, b), jnp.ones((3, 4, 5)), jnp.ones((3, 6, 5)))
    )
    assert batched.total_flops == 2 * 3 * 4 * 6 * 5


def test_loops_whose_trip_count_is_data():
    text = compiled(lambda x, n: jax.lax.fori_loop(0, n, lambda _, y: y @ y, x), jnp.ones((8, 8)), 3)
    assert costs_of(text).total_flops == 2 * 8**3
    found = costs_of(text, unknown_trips=7)
    assert found.total_flops == 7 * 2 * 8**3
    assert [Path(source).name for source in found.guessed] == ["test_plan.py"]


CONDITION = (
    "%c (p: (s32[], f32[8,8])) -> pred[] {\n  %p = (s32[], f32[8,8]{1,0}) parameter(0)\n"
    "  %i = s32[] get-tuple-element(%p), index=0\n  %n = s32[] constant(36)\n"
    "  ROOT %lt = pred[] compare(%i, %n), direction=LT\n}"
)
FUSED_CONDITION = (
    "%less (i: s32[], n: s32[]) -> pred[] {\n  %i = s32[] parameter(0)\n  %n = s32[] parameter(1)\n"
    "  ROOT %lt = pred[] compare(%i, %n), direction=LT\n}\n\n"
    "%c (p: (s32[], f32[8,8])) -> pred[] {\n  %p = (s32[], f32[8,8]{1,0}) parameter(0)\n"
    "  %i = s32[] get-tuple-element(%p), index=0\n  %n = s32[] constant(36)\n"
    "  ROOT %f = pred[] fusion(%i, %n), kind=kLoop, calls=%less\n}"
)
BODY = (
    "%b (p: (s32[], f32[8,8])) -> (s32[], f32[8,8]) {{\n  %p = (s32[], f32[8,8]{{1,0}}) parameter(0)\n"
    "  %x = f32[8,8]{{1,0}} get-tuple-element(%p), index=1\n  %i = s32[] get-tuple-element(%p), index=0\n"
    "  %d = f32[8,8]{{1,0}} dot(%x, %x), lhs_contracting_dims={{1}}, rhs_contracting_dims={{0}}\n"
    "  %s = s32[] constant({step})\n  %j = s32[] add(%i, %s)\n"
    "  ROOT %t = (s32[], f32[8,8]{{1,0}}) tuple(%j, %d)\n}}"
)


@pytest.mark.parametrize("condition", [CONDITION, FUSED_CONDITION], ids=["plain", "fused"])
@pytest.mark.parametrize(("begin", "step", "trips"), [(0, 1, 36), (4, 1, 32), (0, 2, 18), (1, 2, 18)])
def test_trip_counts_are_read_off_the_condition_where_the_compiler_does_not_say(condition, begin, step, trips):
    text = program(
        f"""
  %a = f32[8,8]{{1,0}} parameter(0)
  %z = s32[] constant({begin})
  %t0 = (s32[], f32[8,8]{{1,0}}) tuple(%z, %a)
  ROOT %w = (s32[], f32[8,8]{{1,0}}) while(%t0), condition=%c, body=%b""",
        condition,
        BODY.format(step=step),
    )
    assert costs_of(text).total_flops == trips * 2 * 8**3


def test_one_branch_of_a_conditional_counts():
    def step(x, flag):
        return jax.lax.cond(flag, lambda x: x @ x @ x, lambda x: x @ x, x)

    text = compiled(step, jnp.ones((8, 8)), True)
    by_branch = [costs_of(text, lambda _, b=b: b).total_flops for b in (0, 1)]
    assert by_branch == [2 * 8**3, 4 * 8**3]
    assert costs_of(text).total_flops == 4 * 8**3
    seen = []
    costs_of(text, lambda x: seen.append(x.source))
    assert [Path(source).name for source in seen] == ["test_plan.py"]


# --- communication ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "kind", "size", "sent"),
    [
        ("f32[4,8] all-gather(%a), replica_groups=[2,4]<=[8], dimensions={0}", "all-gather", 128, 96),
        ("(f32[1,8], f32[4,8]) all-gather-start(%a), replica_groups={{0,1,2,3}}", "all-gather", 128, 96),
        ("f32[1,8] all-reduce(%a), replica_groups={{0,1,2,3},{4,5,6,7}}", "all-reduce", 32, 48),
        ("f32[1,2] reduce-scatter(%a), replica_groups=mesh['x'=2,'y'=4] {'y'}", "reduce-scatter", 32, 24),
        ("f32[1,8] all-to-all(%a), replica_groups=[1,4]<=[4]", "all-to-all", 32, 24),
        ("f32[1,8] collective-permute(%a), source_target_pairs={{0,1},{1,0}}", "collective-permute", 32, 32),
    ],
)
def test_bytes_of_collectives(line, kind, size, sent):
    found = costs_of(program(f"  %a = f32[1,8] parameter(0)\n  ROOT %x = {line}"))
    key = Collective(kind, 2 if kind == "collective-permute" else 4)
    assert (found.calls, found.bytes, found.wire) == ({key: 1}, {key: size}, {key: sent})


def test_a_collective_split_over_several_fusions_counts_once():
    def fused(name, more):
        return (
            f"%{name} (p: f32[1,8]) -> f32[4,8] {{\n  %p = f32[1,8] parameter(0)\n  %g = f32[4,8] all-gather(%p), "
            f'replica_groups=[2,4]<=[8], frontend_attributes={{chain_id="0"}}\n  {more}\n}}'
        )

    start = '%s = f32[4,8] custom-call(%g), custom_call_target="AsyncCollectiveStart"'
    text = program(
        """
  %a = f32[1,8] parameter(0)
  %one = f32[4,8] fusion(%a), kind=kCustom, calls=%begin
  ROOT %two = f32[4,8] fusion(%a), kind=kCustom, calls=%later""",
        fused("begin", "ROOT " + start),
        fused("later", "ROOT %t = f32[4,8] bitcast(%g)"),
    )
    assert costs_of(text).calls == {Collective("all-gather", 4): 1}


def test_an_all_reduce_of_which_a_slice_is_kept_is_a_reduce_scatter():
    inner = (
        "%all-reduce-scatter.1 (p: f32[8]) -> f32[2] {\n  %p = f32[8] parameter(0)\n"
        "  %r = f32[8] all-reduce(%p), replica_groups=[1,4]<=[4]\n  ROOT %s = f32[2] slice(%r), slice={[0:2]}\n}"
    )
    entry = "  %a = f32[8] parameter(0)\n  ROOT %f = f32[2] fusion(%a), kind=kCustom, calls=%all-reduce-scatter.1"
    assert costs_of(program(entry, inner)).wire == {Collective("reduce-scatter", 4): 24}


def test_groups_of_parts_of_a_mesh_axis():
    assert group_size("replica_groups=mesh['a'=8,'b'=2] {'a':(1)4,'b'}") == 8


# --- memory traffic ---------------------------------------------------------------------------------------------


def test_traffic_is_of_the_main_memory_and_of_slices_what_they_take():
    assert costs_of(compiled(lambda x: x + 1, jnp.ones(1000))).traffic == 8000
    stack = "  %a = f32[36,1000] parameter(0)\n  %i = s32[] parameter(1)\n"
    inner = (
        "%f (p: f32[36,1000], q: s32[]) -> f32[1,1000] {\n  %p = f32[36,1000] parameter(0)\n"
        "  %q = s32[] parameter(1)\n  ROOT %d = f32[1,1000] dynamic-slice(%p, %q, %q)\n}"
    )
    fusion = "  ROOT %%x = f32[1,1000]{1,0%s} fusion(%%a, %%i), kind=kLoop, calls=%%f"
    assert costs_of(program(stack + fusion % "", inner)).traffic == 8004
    assert costs_of(program(stack + fusion % ":S(1)", inner)).traffic == 4004
    update = (
        "%f (p: f32[36,1000], q: s32[], u: f32[1,1000]) -> f32[36,1000] {\n  %p = f32[36,1000] parameter(0)\n"
        "  %q = s32[] parameter(1)\n  %u = f32[1,1000] parameter(2)\n"
        "  ROOT %d = f32[36,1000] dynamic-update-slice(%p, %u, %q, %q)\n}"
    )
    entry = stack + "  %u = f32[1,1000] parameter(2)\n"
    entry += "  ROOT %x = f32[36,1000] fusion(%a, %i, %u), kind=kLoop, calls=%f"
    assert costs_of(program(entry, update)).traffic == 8004


# --- time -------------------------------------------------------------------------------------------------------


def test_the_roofline_of_each_chip():
    costs = Costs({"default": 1e12, "highest": 1e10}, 1e9, wire={Collective("all-gather", 16): 1e9})
    expected = {
        "v5e": (1.06e12 / 197e12, 1e9 / 819e9, 1e9 / 100e9),
        "v5p": (1.06e12 / 459e12, 1e9 / 2765e9, 1e9 / 200e9),
        "v6e": (1.06e12 / 918e12, 1e9 / 1638e9, 1e9 / 200e9),
        "H100": (1e12 / 989e12 + 1e10 / 67e12, 1e9 / 3350e9, 1e9 / 50e9),
        "H200": (1e12 / 989e12 + 1e10 / 67e12, 1e9 / 4800e9, 1e9 / 50e9),
    }
    assert set(expected) == set(CHIPS)
    for name, parts in expected.items():
        times = roofline(costs, CHIPS[name])
        assert times[:3] == pytest.approx(parts)
        assert times.limit == "communication"
        assert (times.overlapped, times.apart) == (max(times[:3]), sum(times[:3]))
    near = Costs(wire={Collective("all-gather", 8): 450e9})
    assert roofline(near, CHIPS["H100"]).communication == 1


def test_an_unknown_chip_is_refused_by_name():
    with pytest.raises(ValueError, match="'v9:2x2' names no known chip: give one of v5e, v5p, v6e, H100, H200"):
        chip_named("v9:2x2")


# --- programs on eight devices, and the tool ----------------------------------------------------------------------


def run(program, *argv):
    command = [sys.executable, str(program), *map(str, argv)]
    environment = os.environ | {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)


def planned(*argv):
    done = run(planned_steps.__file__, *argv)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_layers_in_a_loop_cost_what_layers_one_after_the_other_cost(tmp_path):
    found = planned(tmp_path, "loops")
    assert found["looped"]["flops"] == found["unrolled"]["flops"] > 0
    assert found["looped"]["wire"] == pytest.approx(found["unrolled"]["wire"], rel=0.01)


def test_adapted_kernels_and_their_gradients_stay_split(tmp_path):
    width, wide = planned_steps.MODEL["hidden_size"], planned_steps.WIDE
    found = planned(tmp_path, "adapters")
    assert [width // 4, wide // 2] in found
    assert not [shape for shape in found if sorted(shape) == [width, wide]]


def row(said, first):
    """Cells of the first line that begins so."""
    line = next(line for line in said.splitlines() if line.startswith(f"| {first} |"))
    return line.strip("| ").split(" | ")[1:]


def bytes_in(cell):
    count, unit = cell.split()
    return float(count) * 2 ** (10 * ("B", "KiB", "MiB", "GiB").index(unit))


def test_the_tool_prints_memory_time_and_communication_of_each_method(tmp_path):
    found = planned(tmp_path, "H100:8", "--methods", "gems,lora")
    assert found["code"] == 0
    said = found["said"]
    assert "8 devices, data 1, fsdp 4, tensor 2;" in said
    of_memory = said[said.index("| per device | arguments |") :]
    memory = {method: [bytes_in(cell) for cell in row(of_memory, method)[:5]] for method in ("gems", "lora")}
    assert not [p for p in memory.values() if p[4] != pytest.approx(sum(p[:4]), rel=0.01)], said
    steps = {name: row(said, name) for name in ("gems, plain", "gems, refresh", "lora, plain")}
    assert all(len(cells) == 8 for cells in steps.values())
    sent = {name: bytes_in(cells[3]) for name, cells in steps.items()}
    # A refresh has communication of its own, and what is sent is the sum of what kinds of it send.
    assert sent["gems, refresh"] > sent["gems, plain"] > 0
    kinds = [line.strip("| ").split(" | ") for line in said.splitlines() if line.count(" | ") == 5]
    for name, total in sent.items():
        assert sum(bytes_in(cells[5]) for cells in kinds if cells[0] == name) == pytest.approx(total, rel=0.01)


def test_sizes_of_arguments_are_known_without_compiling(tmp_path):
    found = planned(tmp_path, "v5e:2x4", "--no-compile")
    assert found["code"] == 0
    # Seven kernels in each of three layers, rows of items at both ends; 4 bytes a number, split over eight devices.
    trained = 4 * (3 * 7 * 16 * 16 + 2 * 16 * 16) / 8
    sizes = {method: [bytes_in(cell) for cell in row(found["said"], method)] for method in ("gems", "adamw", "lora")}
    assert [sizes[method][0] for method in ("gems", "adamw")] == pytest.approx([trained, trained], rel=0.01)
    assert sizes["adamw"][1] == pytest.approx(2 * trained, abs=64)  # beside the moments a few counters
    # Inputs of q, o, gate and down in three layers, half of 16 directions; rows and columns are split over both axes.
    assert sizes["gems"][2] == pytest.approx(4 * 3 * 16 * 8 * 4 / 8, rel=0.01)
    assert sizes["gems"][1] > sizes["gems"][2]
    assert sizes["lora"][3] == pytest.approx(sizes["adamw"][3] + 4 * 3 * 7 * 16 * 16 / 8, rel=0.01)
    assert "| -, tensor, fsdp |" in found["said"]
    assert "temporaries" not in found["said"]


def test_programs_for_tpus_factorise_in_a_loop_of_their_own():
    block = jax.ShapeDtypeStruct((8, 4), jnp.float32)
    # A function of its own each: jax keeps what it has traced.
    text = jax.jit(lambda x: orthonormal_columns(x)[0]).lower(block).as_text()
    with for_platform("tpu"):
        of_tpu = jax.jit(lambda x: orthonormal_columns(x)[0]).lower(block).as_text()
    assert "potrf" in text
    assert "custom_call" not in of_tpu
    assert "while" in of_tpu


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu, the compiler of TPUs, is not installed")
def test_a_real_step_compiles_for_a_tpu_that_is_not_here(tmp_path):
    found = planned(tmp_path, "v5e:2x4", "--methods", "gems")
    assert found["code"] == 0
    assert re.search(r"libtpu \d", found["said"])
    code = bytes_in(row(found["said"], "gems")[3])
    assert code > 0  # of TPUs: programs for processors do not say
    assert bytes_in(row(found["said"], "gems, refresh")[3]) > bytes_in(row(found["said"], "gems, plain")[3]) > 0


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--topology", "v9:2x2"], "names no known chip"),
        (["--topology", "H100"], "must name the devices, as v5e:16x16 or H100:8"),
        (["--topology", "H100:1", "--mesh", "fsdp=3"], "mesh.fsdp=3 times mesh.tensor=1 must divide the 1 devices"),
        (["--topology", "H100:1", "--mesh", "model=1"], "must look like fsdp=64,tensor=4; there are the axes fsdp"),
        (["--topology", "H100:1", "--mesh", "fsdp"], "must look like fsdp=64,tensor=4"),
        (["--topology", "H100:1", "--model", "t6"], "there is no model 't6': give --model"),
        (["--topology", "H100:1", "--methods", "sgd"], "the method 'sgd' is unknown"),
        (["--topology", "H100:1", "--protected", "1"], "--protected is a share between 0 and 1"),
        (["--topology", "H100:1", "--gems.rink", "3"], "gems.rink"),
        (["--topology", "H100:1", "--train.batch_size", "5", "--train.accumulate", "2"], "divisible by train.acc"),
    ],
)
def test_bad_options_are_refused_by_name(argv, said, capsys, monkeypatch):
    monkeypatch.setattr(jax.config, "update", lambda *_: None)  # this process has its devices
    first = jax.devices()[:1]
    monkeypatch.setattr(jax, "devices", lambda *_: first)
    if "--model" not in argv:
        argv = [*argv, "--model", "t5-1.1-base"]
    assert plan.main(argv) == 2
    assert said in capsys.readouterr().err


def test_tpus_need_their_compiler(capsys, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert plan.main(["--topology", "v5e:2x4"]) == 2
    assert 'compiling for TPUs needs their compiler, not a TPU: pip install "jax[tpu]"' in capsys.readouterr().err
