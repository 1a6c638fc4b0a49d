"""Runs on meshes of up to eight devices; `test_devices.py` starts this session.

A mesh is written as in a config: the devices along `data` and along `model`.
"""

import functools
import itertools
import math
import re
import sys

import jax
import numpy as np
import pytest
import runs

import metalr_flax
from metalr_flax import errors
from metalr_flax.trainer import build
from metalr_flax.trainer import devices
from metalr_flax.trainer import launch
from metalr_flax.workdir import fingerprint
from metalr_flax.workdir import folder
from metalr_flax.workdir import manifest

sys.path.append(str(runs.ROOT / 'benchmarks'))
import hlo

MLP = {
  'config': 'digits_mlp',
  'model__kwargs': "{'features': (64, 128, 10)}",
  # At 1e-8 RMSProp's first updates have the size of the rate however small a
  # gradient is: its last bit then moves a loss by 3e-4 within 200 steps, on one
  # device too. At 1e-3 by 6e-7.
  'inner__kwargs': "{'eps': 1e-3}",
  'meta__unroll_length': 2,
}
TRANSFORMER = {
  'config': 'text_transformer',
  'model__kwargs': "{'vocab_size': 256, 'd_model': 32, 'num_heads': 2, "
  "'num_layers': 1}",
  'task__kwargs': "{'sequence_length': 16}",
  # RMSProp's first updates of rare tokens would magnify the last bits.
  'inner__optimizer': 'sgd',
  'inner__learning_rate': 0.1,
  'meta__unroll_length': 2,
  'meta__discount': 0.0,
  'meta__curvature': 'exact',
}
MODELS = {'mlp': MLP, 'transformer': TRANSFORMER}
NET = {
  'config': 'default',
  'model__name': 'users_code:Net',  # BatchNorm, Dropout
  'model__kwargs': {'width': 8},
  'task__name': 'users_code:Plane',
  'task__batch_size': 16,
  'task__kwargs': {'slopes': (2.0, -1.0)},
  'inner__optimizer': 'sgd',
  'inner__learning_rate': 0.003,
  'threefry_partitionable': True,
}
WIDE = {
  **NET,
  'model__name': 'users_code:Annotated',
  'model__kwargs': {},
  'inner__optimizer': 'rmsprop',
}
ONE = (1, 1)
MESHES = [(2, 1), (4, 1), (8, 1), (2, 4), (1, 8)]
WATCHED = ('train/loss', 'meta/loss', 'hyperparams/learning_rate')


def parse(config='digits_mlp', **fields):
  argv = runs.command('unused', config, **fields)
  return runs.flags.parse('metalr_flax.main', argv, '').config


def compiled(steps, **fields):
  """An experiment, its first state and its program for so many steps."""
  config = parse(**fields)
  with build.randomness(config):
    experiment = build.build(config, spread=True)
    state = experiment.init_state()
    lowered = launch.lower_chunk(experiment, state, steps)
    return experiment, state, lowered.compile()


def train(steps, **fields):
  """The state and the rows after so many steps, in one call."""
  _, state, program = compiled(steps, **fields)
  state, chunk = program(state, np.int32(steps))
  assert int(chunk.count) == steps
  return state, jax.device_get(chunk.rows)


@functools.cache
def on_one_device(name, estimator, steps):
  return train(steps, meta__estimator=estimator, mesh=ONE, **MODELS[name])


def assert_agree(found, expected, rtol=1e-5):
  """The rows, and the params by their norm.

  A bias before BatchNorm has no gradient but rounding: hence the least norm.
  """
  for name, row in expected[1].items():
    if name.startswith('hyperparams') or name in WATCHED:
      np.testing.assert_allclose(found[1][name], row, rtol=rtol, err_msg=name)
  for one, other in zip(
    *(jax.tree.leaves(run[0].params) for run in (found, expected)), strict=True
  ):
    one, other = np.asarray(one), np.asarray(other)
    size = max(np.linalg.norm(other), 1e-2)
    assert np.linalg.norm(one - other) <= rtol * size


# The rest of all combinations is for --full.
FIRST = [
  ('mlp', 'forward', (2, 4)),
  ('mlp', 'reverse', (8, 1)),
  ('transformer', 'forward', (8, 1)),
]
ALL = itertools.product(MODELS, ['forward', 'reverse'], MESHES)


@pytest.mark.parametrize(
  ('name', 'estimator', 'mesh'),
  [
    pytest.param(
      *case,
      id=' '.join(map(str, case)),
      marks=pytest.mark.thorough if case in FIRST else pytest.mark.full,
    )
    for case in ALL
  ],
)
def test_all_meshes_agree_over_200_steps(name, estimator, mesh):
  fields = {'meta__estimator': estimator, 'mesh': mesh, **MODELS[name]}
  assert_agree(train(200, **fields), on_one_device(name, estimator, 200))


# One example of all the rest, which a session of quick tests has time for.
KERNEL = (2, 2048)  # just large enough to be split
EXAMPLE = {
  **WIDE,
  'model__kwargs': {'axes': (), 'width': 2048},
  'meta__unroll_length': 2,
  'meta__curvature': 'none',
  'meta__discount': 0.9,
}


@pytest.fixture(scope='module')
def example():
  """An experiment, state and program on both axes, and its 20 steps."""
  experiment, state, program = compiled(20, mesh=(2, 4), **EXAMPLE)
  steps = jax.device_put(np.int32(20), experiment.layout.whole)
  with jax.transfer_guard('disallow'):
    state, chunk = jax.block_until_ready(program(state, steps))
  return state, jax.device_get(chunk.rows), program.as_text()


def test_a_mesh_of_both_axes_agrees_with_one_device(example):
  assert_agree(example[:2], train(20, mesh=ONE, **EXAMPLE))


def test_what_has_the_shape_of_a_param_is_split_as_it_is(example):
  state, _, _ = example
  momenta = {v.shape: v for v in jax.tree.leaves(state.opt_state)}
  for leaf, shape in (
    (state.params['up']['kernel'], (2, 512)),
    (momenta[KERNEL], (2, 512)),
    (state.tangents['params/up/kernel'], (1, 2, 512)),
    (state.params['down']['kernel'], (2048, 1)),  # too small
    (state.eta['learning_rate'], ()),
  ):
    assert {s.data.shape for s in leaf.addressable_shards} == {shape}
    assert len(leaf.sharding.device_set) == 8


def test_nothing_in_a_chunk_leaves_the_devices(example):
  """And nothing comes to them, or the guard would have raised."""
  _, _, text = example
  for word in ('callback', 'infeed', 'outfeed', ' send(', ' recv('):
    assert word not in text


def test_params_alone_are_gathered_and_gradients_reduced_once(example):
  """A gather and a sum for each of the two gradients of a window."""
  found = [c for c in hlo.find_collectives(example[2]) if not c.is_small]
  gathers = [c for c in found if c.kind == 'all-gather']
  assert [c.shapes for c in gathers] == [(KERNEL,)] * 2
  others = [c for c in found if c.kind != 'all-gather']
  assert {c.kind for c in others} == {'all-reduce'}
  elements = sum(math.prod(s) for c in others for s in c.shapes)
  count = sum(leaf.size for leaf in jax.tree.leaves(example[0].params))
  assert 2 * count <= elements <= 2 * count + 16, others


# --- What does not fit: one line, and nothing is written.

REFUSED = {
  'more than there are': ({'mesh': (16, 1)}, 'mesh=(16, 1): needs 16 devices, and JAX sees 8; choose'),
  'no divisor of the devices': ({'mesh': (3, 1)}, 'mesh=(3, 1): its 3 devices must divide the 8 that JAX sees; choose sizes with a product of 1, 2, 4, 8'),
  'no divisor of a batch': ({'mesh': (8, 1), 'task__batch_size': 60}, 'mesh=(8, 1): splits a batch into 8 parts, which must divide its 60 examples; '),
  'no divisor of both axes': ({'mesh': (2, 4), 'task__batch_size': 60}, 'mesh=(2, 4): splits a batch into 8 parts'),
  'no divisor of a held-out batch': ({'mesh': (8, 1), 'task__kwargs': "{'meta_batch_size': 36}"}, 'mesh=(8, 1): splits a batch into 8 parts, which must divide its 36 examples'),
  'no divisor of a microbatch': ({'mesh': (8, 1), 'inner__microbatches': 16}, 'mesh=(8, 1): splits a batch into 8 parts, which must divide its 4 examples'),
}  # fmt: skip


@pytest.mark.parametrize('case', REFUSED)
def test_a_mesh_that_does_not_fit_is_refused(case, tmp_path):
  fields, text = REFUSED[case]
  with pytest.raises(errors.ConfigError) as caught:
    runs.run_here(tmp_path / 'run', 'digits_mlp', **fields)
  assert caught.value.status == 2
  assert str(caught.value).startswith(text)
  assert len(str(caught.value).splitlines()) == 1
  assert not (tmp_path / 'run').exists()


# --- Every option works on both axes.

ONLINE = {'meta__objective': 'online', 'meta__discount': 0.9}
OPTIONS = {
  'plain training': {**MLP, 'meta__estimator': 'none'},
  'no Hessian': {**MLP, 'meta__curvature': 'none', 'meta__discount': 0.99},
  'a sample': {**MLP, 'meta__curvature': 'subsample'},
  'kept tangents': {**MLP, 'meta__discount': 0.9},
  'online, K = 1': {
    **MLP, **ONLINE, 'meta__unroll_length': 1, 'meta__curvature': 'none'
  },
  'groups': {**MLP, 'meta__groups': 'per_leaf', 'meta__curvature': 'none'},
  'groups, exact': {**NET, 'meta__groups': 'users_code:head_and_body'},
  'several learned': {
    **MLP,
    'inner__kwargs': {'decay': 0.9},
    'meta__learned': {'learning_rate': 'log', 'decay': 'sigmoid'},
  },
  'an average': {**MLP, 'average': 0.1},
  'microbatches': {**MLP, 'inner__microbatches': 4},
  'steering': {
    **MLP,
    **ONLINE,
    'meta__discount': 0.99,
    'meta__curvature': 'none',
    'meta__optimizer': 'steering',
    'meta__unroll_length': 1,
    'meta__learned': {'learning_rate': 'log'},
  },
  'clipping, Adam': {**MLP, 'inner__optimizer': 'adam', 'inner__clip_norm': 1.0},
  'remat': {**MLP, 'meta__estimator': 'reverse', 'meta__remat': 'sqrt',
            'meta__unroll_length': 4},
  'BatchNorm and Dropout': NET,
  'annotations': WIDE,
  'other random numbers': {**MLP, 'threefry_partitionable': False},
}  # fmt: skip


@pytest.mark.thorough
@pytest.mark.parametrize('name', OPTIONS)
def test_an_option_agrees_with_one_device(name):
  fields = OPTIONS[name]
  one, both = (train(10, mesh=mesh, **fields) for mesh in (ONE, (2, 4)))
  assert_agree(both, one)


def placed(**fields):
  """An experiment and its first state."""
  config = parse(**fields)
  with build.randomness(config):
    experiment = build.build(config, spread=True)
    return experiment, experiment.init_state()


def test_a_model_says_itself_how_it_is_split():
  experiment, state = placed(mesh=(2, 4), **WIDE)
  assert experiment.layout.batch_axes == ('data',)
  shards = lambda leaf: {s.data.shape for s in leaf.addressable_shards}
  assert shards(state.params['up']['kernel']) == {(2, 16)}
  assert shards(state.params['down']['kernel']) == {(16, 1)}
  assert shards(state.params['up']['bias']) == {(64,)}
  momenta = [
    leaf for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim == 2
  ]
  assert sorted(next(iter(shards(m))) for m in momenta) == [(2, 16), (16, 1)]


@pytest.mark.parametrize(
  ('axes', 'mesh', 'text'),
  [
    ((None, 'tensor'), (2, 4), "model.name=users_code:Annotated: annotates down/kernel with the axis 'tensor'; the mesh has 'data' and 'model'"),
    (('model', None), (2, 4), 'mesh=(2, 4): does not divide down/kernel [64, 1], which'),
  ],
)  # fmt: skip
def test_annotations_that_do_not_fit_are_refused(axes, mesh, text, tmp_path):
  fields = {**WIDE, 'model__kwargs': {'axes': axes}}
  with pytest.raises(errors.ConfigError) as caught:
    runs.run_here(tmp_path / 'run', mesh=mesh, **fields)
  assert str(caught.value).startswith(text)
  assert not (tmp_path / 'run').exists()


@pytest.mark.thorough
def test_a_stream_agrees_with_one_device(tmp_path):
  fields = {
    'model__name': 'vector',
    'model__kwargs': {'size': 2},
    'task__name': 'streams_code:Planes',
    'task__batch_size': 8,
    'task__kwargs': {},
    'inner__learning_rate': 0.003,
    'num_outer_steps': 30,
    'eval_every': 10,
  }
  for mesh in (ONE, (8, 1)):
    runs.run_here(tmp_path / str(mesh), mesh=mesh, **fields)
  assert_same_rows(tmp_path / str(ONE), tmp_path / '(8, 1)')


def assert_same_rows(one, other):
  """The rows agree to 1e-5, and in the steps that they are of."""
  pairs = zip(runs.rows(one), runs.rows(other), strict=True)
  for first, second in pairs:
    assert first.keys() == second.keys()
    for name, cell in first.items():
      assert bool(cell) == bool(second[name]), name
      if cell:
        assert float(second[name]) == pytest.approx(float(cell), rel=1e-5), name


# --- By default: all devices, or as many as divide every batch.


@pytest.mark.parametrize(
  ('fields', 'line'),
  [
    ({}, 'mesh: data 8, model 1'),
    ({'task__batch_size': 12}, 'mesh: data 4, model 1; 4 of 8 devices are not'),
    ({'task__batch_size': 7}, 'mesh: data 1, model 1; 7 of 8 devices are not'),
    ({'mesh': (1, 2)}, 'mesh: data 1, model 2; 6 of 8 devices are not used'),
    ({'population': {'seed': 16}}, 'mesh: data 8, model 1'),
    ({'population': {'seed': 12}}, 'mesh: data 4, model 1; 4 of 8 devices are'),
  ],
)  # fmt: skip
def test_the_devices_of_a_run_are_said(fields, line):
  config = parse(**{**MLP, **fields})
  with build.randomness(config):
    layout = build.build(config, spread=True).layout
    assert devices.describe(layout).startswith(line)
    assert build.build(config).layout is None  # what loads a run needs one


# --- Checkpoints do not know the device count.

SHORT = {**MLP, 'eval_every': 5, 'checkpoint_every': 5, 'average': 0.1}
COUNTS = [(1, 1), (2, 1), (4, 1), (8, 1), (2, 4)]


def go_on(workdir, steps, mesh, **fields):
  runs.run_here(workdir, mesh=mesh, num_outer_steps=steps, **SHORT, **fields)


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
  """For each mesh a run of 10 steps that is not stopped."""
  path = tmp_path_factory.mktemp('whole')

  @functools.cache
  def of(mesh):
    go_on(path / str(mesh), 10, mesh)
    return path / str(mesh)

  return of


def check_going_on(first, then, whole, workdir, caplog):
  """A run of 5 steps on one mesh goes on to 10 on another."""
  go_on(workdir, 5, first)
  caplog.clear()
  go_on(workdir, 10, then)
  said = [m for m in caplog.messages if m.startswith('devices were')]
  if first == then:
    assert not said
    runs.assert_same_run(workdir, whole(first))
  else:
    (line,) = said  # once
    before, now = (math.prod(mesh) for mesh in (first, then))
    assert re.match(rf'devices were {before}\b.* are {now}\b.*1e-5', line)
    assert_same_rows(workdir, whole(first))
  return manifest.verify(workdir / folder.STATE / '10')


@pytest.mark.thorough
def test_a_run_of_four_devices_goes_on_on_one(whole, tmp_path, caplog):
  notes = check_going_on((4, 1), (1, 1), whole, tmp_path, caplog)
  assert notes['environment']['devices'] == '1'
  model, _, _ = metalr_flax.load(whole((4, 1)))
  assert len(model.layers[0].kernel[...].sharding.device_set) == 1


@pytest.mark.full
@pytest.mark.parametrize('first', COUNTS, ids=str)
@pytest.mark.parametrize('then', COUNTS, ids=str)
def test_a_run_goes_on_on_any_mesh(first, then, whole, tmp_path, caplog):
  check_going_on(first, then, whole, tmp_path, caplog)


@pytest.mark.thorough
def test_the_best_checkpoint_is_read_on_one_device(tmp_path):
  fields = {**SHORT, 'best_metric': 'eval/loss', 'num_outer_steps': 10}
  runs.run_here(tmp_path, mesh=(2, 4), **fields)
  model, _, _ = metalr_flax.load(tmp_path, best=True, average=True)
  assert len(model.layers[0].kernel[...].sharding.device_set) == 1


def test_a_fingerprint_is_of_the_values_alone():
  states = [placed(mesh=mesh, **MLP)[1] for mesh in (ONE, (2, 4))]
  assert fingerprint.digest(states[0]) == fingerprint.digest(states[1])


# --- A population: members on devices of their own.

SEEDS = {**MLP, 'population': {'seed': 16}}


@pytest.fixture(scope='module')
def population():
  """Its state, rows and program after 10 steps: on one device, and on all."""
  found = []
  for mesh in (ONE, (8, 1)):
    _, state, program = compiled(10, mesh=mesh, **SEEDS)
    state, chunk = program(state, np.int32(10))
    assert chunk.count.tolist() == [10] * 16
    found.append((state, jax.device_get(chunk.rows), program.as_text()))
  return found


@pytest.mark.thorough
def test_a_population_on_all_devices_agrees_with_one(population):
  one, every = population
  assert_agree(every[:2], one[:2])
  for leaf in jax.tree.leaves(every[0].params):
    assert {s.data.shape for s in leaf.addressable_shards} == {
      (2, *leaf.shape[1:])
    }


@pytest.mark.thorough
def test_members_exchange_nothing_but_who_goes_on(population):
  found = hlo.find_collectives(population[1][2])
  assert found
  assert all(c.is_small for c in found), found


@pytest.mark.parametrize(
  ('mesh', 'members'), [((8, 1), 12), ((4, 2), 16), ((1, 8), 8)]
)
def test_a_mesh_that_does_not_fit_a_population_is_refused(
  mesh, members, tmp_path
):
  with pytest.raises(errors.ConfigError) as caught:
    runs.run_here(tmp_path / 'run', mesh=mesh, population={'seed': members})
  assert str(caught.value).startswith(
    f'mesh={mesh}: must be (data, 1) with a population, with data a divisor '
    f'of its {members} members; '
  )
  assert not (tmp_path / 'run').exists()


@pytest.mark.thorough
def test_a_population_goes_on_on_any_devices(tmp_path):
  fields = {'population': {'seed': 4}, 'eval_every': 5, 'average': 0.1}
  for name, meshes in {'one': (ONE, ONE), 'both': ((), ONE)}.items():
    for steps, mesh in zip((5, 10), meshes, strict=True):
      runs.run_here(tmp_path / name, mesh=mesh, num_outer_steps=steps, **fields)
  assert_same_rows(tmp_path / 'one', tmp_path / 'both')
  model, _, _ = metalr_flax.load(tmp_path / 'both', member=3)
  assert model.theta[...].shape == ()


# --- What the compiled programs exchange.

NO_HESSIAN = {'meta__curvature': 'none', 'meta__discount': 0.9}
WAYS = {
  'plain': {'meta__estimator': 'none'},
  'no Hessian': NO_HESSIAN,
  'forward': {},
  'reverse': {'meta__estimator': 'reverse'},
}


def exchanged(mesh, way, **fields):
  """The collectives of a program that are of more than scalars."""
  _, _, program = compiled(1, mesh=mesh, **MLP, **WAYS[way], **fields)
  found = hlo.find_collectives(program.as_text())
  return [c for c in found if not c.is_small]
