"""What each device computes, moves and exchanges, by the number of devices.

  python benchmarks/scaling.py [--quick]

One outer step of one inner update (K = 1) of an MLP is compiled for 1 and 8
virtual devices, two cases for 2 and 4 as well, with the same global batch: all
devices along `data` (each has all params), and along `model` (params are split
by their size). The numbers are XLA's own of one device's program, exact on any
machine: operations and bytes from its cost analysis, collectives from its text.
Nothing is run. It takes about fifteen minutes on two cores. Writes
benchmarks/results/scaling.{json,md}; `--quick` compiles two ways for 1 and 8
devices and writes nothing. The exit status is 1 where a rule is not kept:
- a device of 8 does at most 1.05 eighths of the operations of one alone;
- the Hessian-free meta-gradient sums each gradient once, over `data`, and
  exchanges scalars besides;
- over `model` it gathers and sums what plain training does for each gradient,
  and exchanges scalars besides;
- the exact meta-gradient exchanges three to four times what plain training
  does: the batch's gradient, the Hessian's two products, the held-out gradient;
- a device of n moves W + B / n bytes, W being what each moves whole and B what
  they share: found from 2 and 8 devices, to 0.1 % the figure of 4.
"""

import argparse
import collections
from collections.abc import Iterator
import json
import pathlib
import sys
from typing import Any, NamedTuple

import hlo
import jax

from metalr_flax.config import flags
from metalr_flax.trainer import build

COUNTS = (1, 2, 4, 8)
# That are compiled for 2 and 4 devices as well.
BETWEEN = {('mlp', 'plain'), ('mlp', 'no Hessian, online')}
RESULTS = pathlib.Path(__file__).parent / 'results'
CONFIGS = pathlib.Path(__file__).parent.parent / 'configs'
PROBLEMS = {
  'mlp': (
    'digits_mlp',
    {
      'task.batch_size': 1024,
      'task.kwargs': {'meta_batch_size': 256},
      'model.kwargs': {'features': (64, 512, 512, 10)},
    },
  ),
}  # fmt: skip
NO_HESSIAN = {'meta.curvature': 'none', 'meta.discount': 0.9}
# With the gradients that an outer step of one update takes.
WAYS: dict[str, tuple[int, dict[str, Any]]] = {
  'plain': (1, {'meta.estimator': 'none'}),
  'no Hessian, online': (1, {**NO_HESSIAN, 'meta.objective': 'online'}),
  'no Hessian': (2, NO_HESSIAN),
  # The batch's gradient, the Hessian's two products, the held-out gradient.
  'exact': (4, {'meta.curvature': 'exact', 'meta.discount': 0.9}),
}
MARGIN = 1.05
BYTES_MARGIN = 0.001


class Bytes(NamedTuple):
  """Bytes that a device of n moves along one axis: whole + shared / n.

  Attributes:
    problem: a name of `PROBLEMS`.
    way: a name of `WAYS`.
    axis: of the mesh.
    whole: what each device moves, however many there are.
    shared: what each moves an n-th of.
    of_four: the compiled figure for 4 devices.
  """

  problem: str
  way: str
  axis: str
  whole: float
  shared: float
  of_four: float

  @property
  def expected(self) -> float:
    """What 4 devices should move."""
    return self.whole + self.shared / 4


def compile_step(config: dict[str, Any]) -> tuple[Any, int]:
  """The compiled outer step of a config, and the number of its params."""
  with build.randomness(config):
    experiment = build.build(config, spread=True)
    state = experiment.init_state()
    options: dict[str, Any] = {}
    if layout := experiment.layout:
      of_state = layout.of_state(state)
      options = {
        'in_shardings': (of_state,), 'out_shardings': (of_state, layout.whole)
      }  # fmt: skip
    step = jax.jit(experiment.step_fn, donate_argnums=0, **options)
    # The machine code is not wanted, so it need not be fast.
    compiled = step.lower(state).compile({'xla_backend_optimization_level': 0})
  return compiled, sum(p.size for p in jax.tree.leaves(state.params))


def measure(problem: str, way: str, mesh: tuple[int, int]) -> dict[str, Any]:
  """The figures of one device's program."""
  name, fields = PROBLEMS[problem]
  fields = {'meta.unroll_length': 1, 'mesh': mesh, **fields, **WAYS[way][1]}
  arguments = [f'--config.{key}={value}' for key, value in fields.items()]
  path = CONFIGS / f'{name}.py'
  config = flags.parse('benchmark', [f'--config={path}', *arguments], '').config
  compiled, params = compile_step(config)
  cost, memory = compiled.cost_analysis(), compiled.memory_analysis()
  return {
    'problem': problem,
    'way': way,
    'mesh': [*mesh],
    'params': params,
    'operations': cost['flops'],
    'bytes_moved': cost['bytes accessed'],
    'bytes_kept': memory.argument_size_in_bytes,
    **_exchanged(hlo.find_collectives(compiled.as_text())),
  }


def _exchanged(found: list[hlo.Collective]) -> dict[str, Any]:
  """Bytes by the kind of collective, those of scalars apart."""
  large: collections.Counter[str] = collections.Counter()
  for each in found:
    if not each.is_small:
      large[each.kind] += each.nbytes
  small = sum(each.nbytes for each in found if each.is_small)
  return {'exchanged': dict(large), 'bytes_of_scalars': small}


def find_faults(rows: list[dict[str, Any]]) -> list[str]:
  """The rules of the module's docstring that rows do not keep, in words."""
  faults = []
  by_key = {(r['problem'], r['way'], *r['mesh']): r for r in rows}
  for row in rows:
    name = f'{row["problem"]}, {row["way"]}, mesh {tuple(row["mesh"])}'
    if max(row['mesh']) != max(COUNTS):
      continue
    alone = by_key[row['problem'], row['way'], 1, 1]
    share = row['operations'] * max(COUNTS) / alone['operations']
    if share > MARGIN:
      faults.append(f'{name}: {share:.3f} eighths of the operations')
    plain = by_key[row['problem'], 'plain', *row['mesh']]
    if row['way'] != 'plain' and not _as_plain(row, plain):
      faults.append(f'{name}: exchanges {row["exchanged"]}')
  for each in split_bytes(rows):
    off = each.of_four / each.expected - 1
    if abs(off) > BYTES_MARGIN:
      faults.append(
        f'{each.problem}, {each.way}, along {each.axis}: 4 devices are '
        f'{100 * off:.2f} % off W + B / n'
      )
  return faults


def split_bytes(rows: list[dict[str, Any]]) -> list[Bytes]:
  """What a device moves whole, and what n share, from 2 and 8 devices.

  Args:
    rows: those compiled for 2 and 4 devices are taken. One device alone sums
      nothing, so it says nothing of the others.
  """
  moved = {(r['problem'], r['way'], *r['mesh']): r['bytes_moved'] for r in rows}
  found = []
  for problem, way in dict.fromkeys(key[:2] for key in moved):
    for axis, mesh in (('data', (4, 1)), ('model', (1, 4))):
      if (problem, way, *mesh) not in moved:
        continue
      two, four, eight = (
        moved[problem, way, *(n if size > 1 else 1 for size in mesh)]
        for n in (2, 4, 8)
      )
      shared = (two - eight) / (1 / 2 - 1 / 8)
      found.append(Bytes(problem, way, axis, eight - shared / 8, shared, four))
  return found


def _as_plain(row: dict[str, Any], plain: dict[str, Any]) -> bool:
  """Whether it exchanges for each gradient what plain training does.

  The exact meta-gradient has three to four times as much: no param is behind
  the input of the first layer, whose weights have one of the Hessian's two
  products, and params are gathered once for both.
  """
  count, small = WAYS[row['way']][0], hlo.SCALARS_BYTES
  least = count - (row['way'] == 'exact')
  exchanged = plain['exchanged']
  return row['exchanged'].keys() == exchanged.keys() and all(
    least * exchanged[kind] - small <= nbytes <= count * exchanged[kind] + small
    for kind, nbytes in row['exchanged'].items()
  )


def to_markdown(rows: list[dict[str, Any]], of_jax: str) -> str:
  """The tables that a person reads, of rows that this JAX compiled."""
  alone = {(r['problem'], r['way']): r for r in rows if r['mesh'] == [1, 1]}
  lines = [
    'One outer step of one inner update, one device\'s share, K = 1, compiled '
    f'by JAX {of_jax} for virtual CPU devices. "Over one alone" is '
    'times the number of devices: 1.00 is a share of exactly 1/n. Params are '
    'float32. `python benchmarks/scaling.py` makes it.',
    '',
    "XLA's CPU compiler sums a whole gradient and then takes a device's part; "
    'on GPUs and TPUs the two are one reduce-scatter, of 1/n of the bytes '
    'received.',
    '',
  ]  # fmt: skip
  for problem in dict.fromkeys(row['problem'] for row in rows):
    own = [row for row in rows if row['problem'] == problem]
    lines += [
      f'## {problem}, {own[0]["params"] * 4 / 1e6:.2f} MB of params',
      '',
      '| meta-gradient | mesh (data, model) | operations, M | over one alone '
      '| bytes moved, MB | over one alone | bytes kept, MB '
      '| summed, MB | gathered, MB | other, MB | scalars, bytes |',
      '|---|---|---|---|---|---|---|---|---|---|---|',
    ]
    lines += [_line(row, alone[problem, row['way']]) for row in own]
    if of_bytes := split_bytes(own):
      lines += ['', *_bytes_table(of_bytes, 4 * own[0]['params'])]
    lines.append('')
  return '\n'.join(lines)


def _bytes_table(found: list[Bytes], params: int) -> list[str]:
  """Why the bytes moved do not fall as 1 / n, with the params' bytes."""
  lines = [
    'A device of n moves W + B / n bytes, found from 2 and 8 devices. W does '
    'not fall: params that are whole or gathered, their gradients, and along '
    '`data` the momenta, tangents and updates as well. B falls: the batch and '
    'its activations, and along `model` what is done with a shard.',
    '',
    '| meta-gradient | along | W, MB | over the params | B, MB '
    '| 4 devices by W + B / 4, MB | compiled, MB |',
    '|---|---|---|---|---|---|---|',
  ]
  for each in found:
    figures = (each.shared, each.expected, each.of_four)
    cells = [
      each.way, each.axis, f'{each.whole / 1e6:.2f}',
      f'{each.whole / params:.2f}', *(f'{x / 1e6:.2f}' for x in figures),
    ]  # fmt: skip
    lines.append(f'| {" | ".join(cells)} |')
  return lines


def _line(row: dict[str, Any], alone: dict[str, Any]) -> str:
  count = max(row['mesh'])
  kinds = {kind: n / 1e6 for kind, n in row['exchanged'].items()}
  summed = kinds.pop('all-reduce', 0) + kinds.pop('reduce-scatter', 0)
  gathered = kinds.pop('all-gather', 0)
  over = lambda key: f'{row[key] * count / alone[key]:.3f}'
  cells = [
    row['way'], tuple(row['mesh']), f'{row["operations"] / 1e6:.1f}',
    over('operations'), f'{row["bytes_moved"] / 1e6:.1f}', over('bytes_moved'),
    f'{row["bytes_kept"] / 1e6:.2f}', f'{summed:.2f}', f'{gathered:.2f}',
    f'{sum(kinds.values()):.2f}', row['bytes_of_scalars'],
  ]  # fmt: skip
  return f'| {" | ".join(map(str, cells))} |'


def _cases(*, quick: bool) -> Iterator[tuple[str, str, tuple[int, int]]]:
  """What is compiled: problems, ways and meshes."""
  for problem in PROBLEMS:
    for way in ['plain', 'no Hessian'] if quick else WAYS:
      between = not quick and (problem, way) in BETWEEN
      counts = COUNTS if between else (1, max(COUNTS))
      yield problem, way, (1, 1)
      yield from ((problem, way, (n, 1)) for n in counts[1:])
      yield from ((problem, way, (1, n)) for n in counts[1:])


def main() -> int:
  """Runs the command line; returns its exit status."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--quick', action='store_true')
  quick = parser.parse_args().quick
  jax.config.update('jax_platforms', 'cpu')
  jax.config.update('jax_num_cpu_devices', max(COUNTS))
  rows = []
  for problem, way, mesh in _cases(quick=quick):
    rows.append(measure(problem, way, mesh))
    print(rows[-1], flush=True)
    jax.clear_caches()
  table = to_markdown(rows, jax.__version__)
  print(table)
  faults = find_faults(rows)
  print('\n'.join(faults) or 'all rules are kept')
  if not quick:
    path = RESULTS / 'scaling.json'
    path.write_text(json.dumps({'jax': jax.__version__, 'rows': rows}) + '\n')
    path.with_suffix('.md').write_text(table)
  return int(bool(faults))


if __name__ == '__main__':
  sys.exit(main())
