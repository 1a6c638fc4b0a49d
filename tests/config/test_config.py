"""Every mistake in a config or a command line is one helpful line.

The mistakes are listed in tables, so that a new one costs one line; a fuzz test
then looks for those that nobody thought of.
"""

import copy
import inspect
import json
import math
import pathlib
import re
import shlex

from hypothesis import example
from hypothesis import given
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
from ml_collections import config_dict
import optax
import pytest
import runs

from metalr_flax import errors
from metalr_flax import models
from metalr_flax import tasks
from metalr_flax.config import check
from metalr_flax.config import flags
from metalr_flax.config import population
from metalr_flax.config import rules
from metalr_flax.config import schema
from metalr_flax.engine import bijections
from metalr_flax.engine import curvature
from metalr_flax.engine import inner
from metalr_flax.engine import meta_gradient
from metalr_flax.engine import ranges

DEFAULT = f'--config={runs.CONFIGS / "default.py"}'
DIGITS = f'--config={runs.CONFIGS / "digits_mlp.py"}'
ABSENT = object()


def parse(*argv):
  return flags.parse('metalr_flax.main', argv, 'usage')


def good():
  """A config without mistakes, as a config file's `to_dict()` gives it."""
  return copy.deepcopy(parse(DEFAULT).config)


def changed(fields):
  """A good config with other values in some of its fields."""
  config = good()
  for field, value in dict(fields).items():
    section, _, name = field.rpartition('.')
    holder = config
    for key in section.split('.') if section else ():
      holder = holder.get(key)
      if not isinstance(holder, dict):  # replaced before
        return config
    if value is ABSENT:
      del holder[name]
    else:
      holder[name] = value
  return config


def refused(function, *args):
  """The line that a call is refused with: what, the rule; the remedy."""
  with pytest.raises(errors.ConfigError) as caught:
    function(*args)
  assert caught.value.status == 2
  line = str(caught.value)
  assert len(line.splitlines()) == 1, line
  assert re.search(r'\S; \S', line), line
  assert 'Traceback' not in line
  return line


def assert_parts(line, parts):
  for part in parts:
    assert part in line, f'{part!r} is not in {line!r}'


# --- Wrong values: what is changed in a good config, what the line must say.

WRONG_CONFIGS = {
  # Names of fields and sections.
  'typo': ({'meta.unrol_length': 6}, 'meta.unrol_length: unknown', 'did you mean meta.unroll_length?'),
  'typo at the top': ({'num_outer_step': 5}, 'num_outer_step: unknown', 'did you mean num_outer_steps?'),
  'typo of a section': ({'tsak': {'name': 'digits'}}, 'tsak: unknown', 'known are seed'),
  'in the wrong section': ({'task.unroll_length': 6}, 'task.unroll_length: unknown', 'did you mean meta.unroll_length?'),
  'in no section': ({'unroll_length': 6}, 'unroll_length: unknown', 'did you mean meta.unroll_length?'),
  'nothing near': ({'zzz': 6}, 'zzz: unknown', 'known are seed, num_outer_steps'),
  'unknown section': ({'logging': {'x': 1}}, 'logging: unknown field'),
  'section below a section': ({'meta.extra': {'x': 1}}, 'meta.extra: unknown field'),
  'section as a number': ({'task': 3}, 'task: is a section', 'task.name, task.batch_size'),
  'section as a list': ({'inner': [1]}, 'inner: is a section', 'inner.learning_rate'),
  'section as None': ({'model': None}, 'model: is a section', 'model.kwargs'),
  'field as a section': ({'seed': {'data': 0}}, "seed={'data': 0}: must be an integer"),
  # Populations.
  'population of a number': ({'population': 3}, 'population=3: must be a mapping'),
  'population of no seeds': ({'population': {'seed': 0}}, 'population.seed=0: must be a number of seeds from 1 to 65536'),
  'population of True seeds': ({'population': {'seed': True}}, 'population.seed=True: must be a number of seeds'),
  'population of an empty list': ({'population': {'seed': []}}, 'population.seed=[]: must be a list with a value for each member'),
  'population of one rate': ({'population': {'inner': {'learning_rate': 0.1}}}, 'population.inner.learning_rate=0.1: must be a list'),
  'lists of two lengths': ({'population': {'seed': 3, 'inner': {'learning_rate': [0.1]}}}, 'population=3 of seed, 1 of inner.learning_rate: must have as many values of each', 'write every combination out'),
  'a typo in a population': ({'population': {'sede': [1]}}, 'population.sede: unknown field; did you mean seed?'),
  'a section in a population': ({'population': {'meta': {}}}, 'population.meta: is a section'),
  'a shape in a population': ({'population': {'meta': {'unroll_length': [1, 2]}}}, 'population.meta.unroll_length=[1, 2]: must be the same for all members', 'what may differ are seed, inner.learning_rate'),
  'a population in a population': ({'population': {'population': {'seed': [1]}}}, 'population.population.seed=[1]: must be the same'),
  'not learned in a population': ({'population': {'inner': {'kwargs': {'decay': [0.8, 0.9]}}}}, 'population.inner.kwargs.decay=[0.8, 0.9]: must be learned to differ', 'add decay to meta.learned'),
  'a bad member': ({'population': {'inner': {'learning_rate': [0.1, 2.0]}}}, 'population, member 1: inner.learning_rate=2.0: must be a number inside the open range (0, 1)'),
  'a bad seed': ({'population': {'seed': [1, 'two']}}, 'population, member 1: seed=two: must be an integer'),
  'one seed too many': ({'population': {'seed': 2}, 'seed': 2**32 - 1}, 'population, member 1: seed=4294967296: must be an integer'),
  'the best of a population': ({'population': {'seed': 2}, 'best_metric': 'eval/loss'}, "best_metric=eval/loss: must be '' with a population"),
  'a rate that nothing uses': ({'population': {'meta': {'learning_rate': [0.1]}}, 'meta.optimizer': 'steering'}, "population.meta.learning_rate=[0.1]: has no effect on 'steering'"),
  'below a number': ({'population': {'task': {'loss_kwargs': {'w': {'a': [0.1]}}}}, 'task.loss_kwargs': {'w': 0.5}, 'meta.learned': {'w': 'log'}}, 'population.task.loss_kwargs.w.a=0.1: is below w, which is 0.5'),
  # Missing fields and sections.
  'no name': ({'task.name': ABSENT}, 'task.name: missing', 'add it to the config file'),
  'no section': ({'task': ABSENT}, 'task.name: missing'),
  'empty section': ({'model': {}}, 'model.name: missing'),
  # Keys that config.json would not keep.
  'number as a key': ({'inner.kwargs': {1: 2}}, 'inner.kwargs: has the key 1', 'use strings'),
  'tuple as a key': ({'meta.learned': {(1, 2): 'log'}}, 'meta.learned: has the key (1, 2)'),
  'None as a key': ({'task.kwargs': {'a': {None: 1}}}, 'task.kwargs.a: has the key None'),
  'empty key': ({'model.kwargs': {'': 1}}, "model.kwargs: has the key ''"),
  'key with a dot': ({'model.kwargs': {'a.b': 1}}, "model.kwargs: has the key 'a.b'"),
  # Integers.
  'bool for int': ({'seed': True}, 'seed=True: must be an integer from 0', '--config.seed='),
  'float for int': ({'task.batch_size': 8.0}, 'task.batch_size=8.0: must be an integer >= 1'),
  'string for int': ({'meta.unroll_length': '6'}, 'meta.unroll_length=6: must be an integer'),
  'None for int': ({'log_every': None}, 'log_every=None: must be an integer >= 1'),
  'list for int': ({'eval_every': [5]}, 'eval_every=[5]: must be an integer >= 1'),
  'nan for int': ({'checkpoint_every': math.nan}, 'checkpoint_every=nan: must be an integer >= 1', 'finite'),
  'inf for int': ({'num_outer_steps': math.inf}, 'num_outer_steps=inf: must be an integer from 0', 'finite'),
  'seed < 0': ({'seed': -1}, 'seed=-1: must be an integer from 0 to 4294967295'),
  'seed of 33 bits': ({'seed': 2**32}, 'seed=4294967296: must be an integer from 0'),
  'steps < 0': ({'num_outer_steps': -1}, 'num_outer_steps=-1: must be an integer from 0'),
  'steps of 32 bits': ({'num_outer_steps': 2**31}, 'num_outer_steps=2147483648: must be an integer from 0'),
  'K = 0': ({'meta.unroll_length': 0}, 'meta.unroll_length=0: must be an integer from 1'),
  'K < 0': ({'meta.unroll_length': -3}, 'meta.unroll_length=-3: must be an integer from 1'),
  'K of 32 bits': ({'meta.unroll_length': 2**31}, 'meta.unroll_length=2147483648: must be an integer from 1'),
  'batch of none': ({'task.batch_size': 0}, 'task.batch_size=0: must be an integer >= 1'),
  'no logging': ({'log_every': 0}, 'log_every=0: must be an integer >= 1'),
  'no evaluation': ({'eval_every': 0}, 'eval_every=0: must be an integer >= 1'),
  'no checkpoints': ({'checkpoint_every': -5}, 'checkpoint_every=-5: must be an integer >= 1'),
  # Too long to print, and beyond what JSON readers keep.
  'huge int': ({'log_every': 10**5000}, 'log_every=an integer of 16610 bits: must fit in 64 bits'),
  'huge int for a rate': ({'inner.learning_rate': 10**400}, 'inner.learning_rate=an integer of 1329 bits'),
  'huge int in kwargs': ({'inner.kwargs': {'eps': -(10**5000)}}, 'inner.kwargs.eps=an integer of'),
  # Numbers.
  'rate = nan': ({'inner.learning_rate': math.nan}, 'inner.learning_rate=nan: must be a number > 0', 'finite'),
  'rate = inf': ({'inner.learning_rate': math.inf}, 'inner.learning_rate=inf: must be a number > 0', 'finite'),
  'rate = 0': ({'inner.learning_rate': 0.0}, 'inner.learning_rate=0.0: must be a number > 0'),
  'rate < 0': ({'inner.learning_rate': -0.1}, 'inner.learning_rate=-0.1: must be a number > 0'),
  'string for a rate': ({'inner.learning_rate': '0.1'}, 'inner.learning_rate=0.1: must be a number > 0'),
  'bool for a rate': ({'inner.learning_rate': True}, 'inner.learning_rate=True: must be a number > 0'),
  'outer rate < 0': ({'meta.learning_rate': -1.0}, 'meta.learning_rate=-1.0: must be a number >= 0'),
  'outer rate = nan': ({'meta.learning_rate': math.nan}, 'meta.learning_rate=nan: must be a number >= 0'),
  'mapping for a rate': ({'meta.learning_rate': {}}, 'meta.learning_rate={}: must be a number >= 0'),
  'nan in kwargs': ({'inner.kwargs': {'decay': math.nan}}, 'inner.kwargs.decay=nan: must be finite', '--config.inner.kwargs.decay='),
  'inf in a list': ({'model.kwargs': {'a': [1, -math.inf]}}, 'model.kwargs.a=-inf: must be finite'),
  # Strings, flags and mappings.
  'int for a path': ({'task.path': 3}, 'task.path=3: must be a string'),
  'None for a path': ({'task.path': None}, 'task.path=None: must be a string'),
  'one size of a mesh': ({'mesh': [8]}, 'mesh=[8]: must be () or two integers >= 1', '--config.mesh='),
  'three sizes of a mesh': ({'mesh': (2, 2, 2)}, 'mesh=[2, 2, 2]: must be () or two integers'),
  'a mesh of none': ({'mesh': [0, 8]}, 'mesh=[0, 8]: must be () or two integers >= 1'),
  'a number for a mesh': ({'mesh': 8}, 'mesh=8: must be () or two integers'),
  'names for a mesh': ({'mesh': ['data', 'model']}, "mesh=['data', 'model']: must be () or two integers"),
  'int for a flag': ({'threefry_partitionable': 1}, 'threefry_partitionable=1: must be True or False'),
  'string for a flag': ({'threefry_partitionable': 'False'}, 'threefry_partitionable=False: must be True or False'),
  'list for a mapping': ({'inner.kwargs': ['momentum']}, "inner.kwargs=['momentum']: must be a mapping", 'write it as {}'),
  'string for a mapping': ({'model.kwargs': 'x'}, 'model.kwargs=x: must be a mapping'),
  'None for a mapping': ({'task.kwargs': None}, 'task.kwargs=None: must be a mapping'),
  'set in kwargs': ({'inner.kwargs': {'a': {1}}}, 'inner.kwargs.a={1}: must be a number, a string'),
  'bytes in kwargs': ({'model.kwargs': {'a': b'x'}}, "model.kwargs.a=b'x': must be a number, a string"),
  'function in kwargs': ({'model.kwargs': {'act': math.tanh}}, 'model.kwargs.act=<built-in', 'plain values'),
  'array in a list': ({'model.kwargs': {'a': [jnp.ones]}}, 'model.kwargs.a=<function', 'plain values'),
  'object for a seed': ({'seed': object()}, 'seed=<object', 'plain values'),
  # Names of what there is.
  'task': ({'task.name': 'linear_regresion'}, 'task.name=linear_regresion: must be a known task or package.module:Class', 'did you mean linear_regression?'),
  'task, nothing near': ({'task.name': 'cifar'}, 'task.name=cifar', 'known are breast_cancer, digits'),
  'empty task': ({'task.name': ''}, 'task.name=: must be a known task', 'known are breast_cancer'),
  'no class': ({'task.name': 'package.module:'}, 'task.name=package.module:', 'package.module:Class'),
  'no module': ({'model.name': ':Model'}, 'model.name=:Model', 'package.module:Class'),
  'class with a space': ({'model.name': 'a b:C'}, 'model.name=a b:C', 'package.module:Class'),
  'list of names': ({'task.name': ['digits']}, "task.name=['digits']: must be a known task"),
  'model': ({'model.name': 'MLP'}, 'model.name=MLP: must be a known model', 'known are'),
  'model typo': ({'model.name': 'liner'}, 'model.name=liner: must be a known model', 'did you mean linear?'),
  'optimizer': ({'inner.optimizer': 'rmsporp'}, 'inner.optimizer=rmsporp: must be a known optax optimizer', 'did you mean rmsprop?'),
  'optimizer in capitals': ({'inner.optimizer': 'SGD'}, 'inner.optimizer=SGD', 'known are adabelief'),
  'no optimizer': ({'inner.optimizer': None}, 'inner.optimizer=None: must be a known', '--config.inner.optimizer='),
  'of optax, no optimizer': ({'inner.optimizer': 'clip'}, 'inner.optimizer=clip: must be a known'),
  'outer optimizer': ({'meta.optimizer': 'adm'}, 'meta.optimizer=adm: must be a known', 'did you mean adam?'),
  'estimator': ({'meta.estimator': 'revers'}, 'meta.estimator=revers: must be a known estimator', 'did you mean reverse?'),
  'remat': ({'meta.remat': 'steps'}, 'meta.remat=steps: must be a known remat policy', 'did you mean step?'),
  'curvature': ({'meta.curvature': 'exakt'}, 'meta.curvature=exakt: must be a known curvature', 'did you mean exact?'),
  'objective': ({'meta.objective': 'heldout'}, 'meta.objective=heldout: must be a known objective', 'did you mean held_out?'),
  'groups': ({'meta.groups': 'per_lef'}, 'meta.groups=per_lef: must be', 'per_leaf', '--config.meta.groups='),
  'share of 0': ({'meta.subsample': 0}, 'meta.subsample=0: must be a number > 0 and <= 1'),
  'share above 1': ({'meta.subsample': 1.5}, 'meta.subsample=1.5: must be a number > 0 and <= 1'),
  'discount < 0': ({'meta.discount': -0.1, 'meta.estimator': 'forward'}, 'meta.discount=-0.1: must be a number >= 0 and <= 1'),
  'discount above 1': ({'meta.discount': 1.1, 'meta.estimator': 'forward'}, 'meta.discount=1.1: must be a number >= 0 and <= 1'),
  'discount = nan': ({'meta.discount': math.nan}, 'meta.discount=nan: must be a number', 'finite'),
  'discount with reverse': ({'meta.discount': 0.5, 'meta.estimator': 'reverse'}, 'meta.discount=0.5', 'reverse', '--config.meta.estimator=forward'),
  'always zero': ({'meta.objective': 'online', 'meta.unroll_length': 1}, 'meta.objective=online', 'identically zero', 'meta.unroll_length=1', '--config.meta.discount='),
  'estimator as None': ({'meta.estimator': None}, 'meta.estimator=None: must be a known estimator'),
  # What is learned.
  'bijection': ({'meta.learned': {'learning_rate': 'sigmod'}}, 'meta.learned.learning_rate=sigmod: must be a known bijection', 'did you mean sigmoid?'),
  'bijection, nothing near': ({'meta.learned': {'learning_rate': 'tanh'}}, 'meta.learned.learning_rate=tanh', 'known are log, one_minus_log, sigmoid'),
  'range the wrong way': ({'meta.learned': {'learning_rate': 'sigmoid(1, 0)'}}, 'meta.learned.learning_rate=sigmoid(1, 0): must be a known bijection', 'sigmoid(low, high)'),
  'range without an end': ({'meta.learned': {'learning_rate': 'sigmoid(0, inf)'}}, 'meta.learned.learning_rate=sigmoid(0, inf)', 'sigmoid(low, high)'),
  'range in words': ({'meta.learned': {'learning_rate': 'sigmoid(a, b)'}}, 'meta.learned.learning_rate=sigmoid(a, b)', 'sigmoid(low, high)'),
  'outside its own range': ({'meta.learned': {'learning_rate': 'sigmoid(0.2, 0.5)'}}, 'inner.learning_rate=0.1', '(0.2, 0.5)'),
  'bijection as a number': ({'meta.learned': {'learning_rate': 1}}, 'meta.learned.learning_rate=1: must be a known bijection'),
  'bijection as a list': ({'meta.learned': {'learning_rate': ['log']}}, "meta.learned.learning_rate=['log']"),
  'bijection as a mapping': ({'meta.learned': {'learning_rate': {}}}, 'meta.learned.learning_rate={}'),
  'bijection as None': ({'meta.learned': {'learning_rate': None}}, 'meta.learned.learning_rate=None'),
  'list of learned': ({'meta.learned': ['learning_rate']}, "meta.learned=['learning_rate']: must be a mapping"),
  'nothing learned': ({'meta.learned': {}}, 'meta.learned={}: must name a hyperparameter', '--config.meta.estimator=none'),
  'rate of 1': ({'inner.learning_rate': 1.0}, 'inner.learning_rate=1.0', '(0, 1)', 'sigmoid', 'another bijection'),
  'rate above 1': ({'inner.learning_rate': 3}, 'inner.learning_rate=3', '(0, 1)', 'sigmoid'),
  'learned argument': ({'inner.kwargs': {'decay': 1.0}, 'meta.learned': {'decay': 'sigmoid'}}, 'inner.kwargs.decay=1.0', '(0, 1)'),
  'learned below 0': ({'inner.kwargs': {'eps': -1e-8}, 'meta.learned': {'eps': 'log'}}, 'inner.kwargs.eps=-1e-08', '(0, inf)', 'log'),
  'learned integer': ({'inner.kwargs': {'eps': 1}, 'meta.learned': {'eps': 'log'}}, 'inner.kwargs.eps=1: must be a number'),
  'learned of the loss': ({'task.loss_kwargs': {'label_smoothing': 1.0}, 'meta.learned': {'label_smoothing': 'sigmoid'}}, 'task.loss_kwargs.label_smoothing=1.0', '(0, 1)'),
  'learned by name': ({'task.loss_kwargs': {'class_weights': {'3': 0.0}}, 'meta.learned': {'class_weights': 'log'}}, 'task.loss_kwargs.class_weights.3=0.0', '(0, inf)'),
  'learned of the loss, integer': ({'task.loss_kwargs': {'l2': 1}, 'meta.learned': {'l2': 'log'}}, 'task.loss_kwargs.l2=1: must be a number'),
  'learned of the loss, list': ({'task.loss_kwargs': {'l2': [1.0]}, 'meta.learned': {'l2': 'log'}}, 'task.loss_kwargs.l2=[1.0]: must be a number'),
  'of the loss and the optimizer': ({'task.loss_kwargs': {'decay': 0.1}, 'inner.kwargs': {'decay': 0.9}, 'meta.learned': {'decay': 'sigmoid'}}, 'task.loss_kwargs.decay: is learned', 'inner.kwargs.decay', 'rename'),
  'of the loss, online': ({'task.loss_kwargs': {'l2': 0.1}, 'meta.learned': {'l2': 'log'}, 'meta.objective': 'online'}, 'meta.objective=online: is the training loss itself', "the loss's own l2", '--config.meta.objective=held_out'),
  'list of the loss': ({'task.loss_kwargs': ['l2']}, "task.loss_kwargs=['l2']: must be a mapping"),
  'learned string': ({'inner.kwargs': {'decay': '0.9'}, 'meta.learned': {'decay': 'sigmoid'}}, 'inner.kwargs.decay=0.9: must be a number'),
}  # fmt: skip


@pytest.mark.parametrize(
  ('fields', 'parts'),
  [(fields, parts) for fields, *parts in WRONG_CONFIGS.values()],
  ids=WRONG_CONFIGS,
)
def test_a_wrong_config_is_refused_in_one_line(fields, parts):
  line = refused(check.resolve, changed(fields))
  assert line.startswith(parts[0])
  assert_parts(line, parts)


# --- Wrong command lines. Every one but the last few has a good --config.

WRONG_LINES = {
  # Values.
  'optimizer': (['--config.inner.optimizer=rmsporp'], 'inner.optimizer=rmsporp', 'did you mean rmsprop?'),
  'bijection': (['--config.meta.learned.learning_rate=sigmod'], 'meta.learned.learning_rate=sigmod', 'did you mean sigmoid?'),
  'range': (['--config.inner.learning_rate=1'], 'inner.learning_rate=1.0', '(0, 1)'),
  'range, new bijection': (["--config.meta.learned={'learning_rate': 'sigmoid'}", '--config.inner.learning_rate=2'], 'inner.learning_rate=2.0', '(0, 1)'),
  'float for int': (['--config.seed=1.5'], 'seed=1.5: must be an integer from 0', '--config.seed='),
  'word for int': (['--config.meta.unroll_length=six'], 'meta.unroll_length=six: must be an integer from 1'),
  'exponent for int': (['--config.num_outer_steps=1e3'], 'num_outer_steps=1e3: must be an integer'),
  'nothing for int': (['--config.seed='], 'seed=: must be an integer'),
  'word after a space': (['--config.seed', 'one'], 'seed=one: must be an integer'),
  'too long for int': ([f'--config.seed={"9" * 5000}'], 'seed=999', 'must be an integer'),
  'too long for float': ([f'--config.inner.learning_rate={"9" * 400}'], 'inner.learning_rate=inf: must be a number > 0', 'finite'),
  'huge': (['--config.log_every=99999999999999999999999'], 'log_every=an integer of 77 bits: must fit in 64 bits'),
  'K = 0': (['--config.meta.unroll_length=0'], 'meta.unroll_length=0: must be an integer from 1'),
  'word for float': (['--config.inner.learning_rate=fast'], 'inner.learning_rate=fast: must be a number > 0'),
  'nan': (['--config.inner.learning_rate=nan'], 'inner.learning_rate=nan: must be a number > 0'),
  'inf': (['--config.meta.learning_rate=inf'], 'meta.learning_rate=inf: must be a number >= 0'),
  'underflow': (['--config.inner.learning_rate=1e-400'], 'inner.learning_rate=0.0: must be a number > 0'),
  'one size of a mesh': (['--config.mesh=8'], 'mesh=', 'must be () or two integers >= 1'),
  'words for a mesh': (['--config.mesh=all'], 'mesh=', 'must be () or two integers >= 1'),
  'flag': (['--config.threefry_partitionable=maybe'], 'threefry_partitionable=maybe: must be True or False'),
  'negated with a value': (['--noconfig.threefry_partitionable=3'], '--noconfig.threefry_partitionable=3 does not take an argument'),
  'NUL in a name': (['--config.task.name=dig\0its'], 'task.name=dig\0its: must be a known task', 'did you mean digits?'),
  'lines in a name': (['--config.model.name=lin\near'], 'model.name=lin ear: must be a known model', 'did you mean linear?'),
  # Mappings.
  'number for a mapping': (['--config.inner.kwargs=0.9'], 'inner.kwargs=0.9: must be a mapping', 'write it as {}'),
  'list for a mapping': (['--config.inner.kwargs=[]'], 'inner.kwargs=[]: must be a mapping'),
  'nothing for a mapping': (['--config.meta.learned='], 'meta.learned=: must be a mapping'),
  'unfinished mapping': (["--config.inner.kwargs={'decay': "], "inner.kwargs={'decay': : must be a mapping"),
  'unquoted mapping': (['--config.inner.kwargs={decay: 0.9}'], 'inner.kwargs={decay: 0.9}: must be a mapping'),
  'deep mapping': ([f'--config.inner.kwargs={"[" * 5000}'], 'inner.kwargs=[[[', 'must be a mapping'),
  'key with a dot': (["--config.inner.kwargs={'a.b': 1}"], "inner.kwargs={'a.b': 1}: must be a mapping"),
  'number as a key': (['--config.inner.kwargs={1: 2}'], 'inner.kwargs: has the key 1'),
  'inf in a mapping': (["--config.inner.kwargs={'decay': 1e999}"], 'inner.kwargs.decay=inf: must be finite'),
  'set in a mapping': (["--config.model.kwargs={'a': {1}}"], 'model.kwargs.a={1}: must be a number, a string'),
  'nothing learned': (['--config.meta.learned={}'], 'meta.learned={}', '--config.meta.estimator=none'),
  'below a mapping': (['--config.inner.kwargs.momentum=0.9'], 'inner.kwargs.momentum: not in ', 'default.py', """--config.inner.kwargs="{'momentum': ...}\""""),
  'below, after a space': (['--config.inner.kwargs.momentum', '0.9'], 'inner.kwargs.momentum: not in ', "{'momentum': ...}"),
  'typo below a mapping': (['--config.model.kwargs.init_sed=7'], 'model.kwargs.init_sed: not in ', "{'init_sed': ...}"),
  'below a value': (['--config.model.kwargs.init_seed.x=7'], 'model.kwargs.init_seed.x: not in '),
  'type below a mapping': (['--config.model.kwargs.init_seed=7.5'], 'model.kwargs.init_seed=7.5: has another type than the int 42 in ', 'default.py; change the one there'),
  'key, then its mapping': (['--config.task.kwargs.skip=3', '--config.task.kwargs={}'], 'config.task.kwargs', 'overwrite', 'config.task.kwargs.skip'),
  # Names of fields.
  'typo': (['--config.meta.unrol_length=6'], 'meta.unrol_length: unknown field', 'did you mean meta.unroll_length?'),
  'typo, negated': (['--noconfig.threefry_partitionabel'], 'threefry_partitionabel: unknown field', 'did you mean threefry_partitionable?'),
  'section': (['--config.task=digits'], 'task: is a section', 'task.name'),
  'unknown section': (['--config.tsk.name=digits'], 'tsk.name: unknown field', 'did you mean task.name?'),
  'no name': (['--config.=3'], 'unknown field', 'known are seed'),
  'two dots': (['--config..seed=3'], '.seed: unknown field', 'did you mean seed?'),
  'below a number': (['--config.seed.x=3'], 'seed.x: unknown field', 'did you mean seed?'),
  'index': (['--config.seed[0]=3'], 'seed[0]: unknown field', 'did you mean seed?'),
  'space in a name': (['--config.seed =3'], 'seed : unknown field', 'did you mean seed?'),
  # Flags and arguments.
  'flag typo': (['--workdr=x'], '--workdr: unknown flag', 'did you mean workdir?'),
  'config typo': (['--confg=x'], '--confg: unknown flag', 'did you mean config?'),
  'unknown flag': (['--verbose'], '--verbose: unknown flag', 'known are config, workdir, help'),
  'flag of absl': (['--helpfull'], '--helpfull: unknown flag', 'did you mean help?'),
  'negated int': (['--noconfig.seed'], '--noconfig.seed: unknown flag'),
  'missing flag file': (['--flagfile=/nowhere/flags'], '/nowhere/flags', '--help'),
  'positional': (['train'], 'train: unexpected argument', '--<flag>=<value>'),
  'positional, late': (['--', 'train'], 'train: unexpected argument'),
  'empty argument': ([''], 'unexpected argument', '--<flag>=<value>'),
  'spaces around =': (['--config.seed', '=', '3'], 'seed==: must be an integer'),
  'no value': (['--config.seed'], 'Missing value', '--config.seed'),
  'empty workdir': (['--workdir='], 'workdir=: must not be empty', 'leave the flag out'),
  'bucket': (['--workdir=gs://bucket/run'], 'workdir=gs://bucket/run: must be a local folder', 'mount it'),
  'URL': (['--workdir=file:///run'], 'workdir=file:///run: must be a local folder'),
  "nobody's home": (['--workdir=~nobody_at_all/run'], 'workdir=~nobody_at_all/run: there is no such user', './~nobody_at_all/run'),
  'workdir, no value': (['--workdir'], 'Missing value', '--workdir'),
  # The config file.
  'repeated, last is bad': (['--config=nowhere.py'], 'config=nowhere.py: no such file'),
  'repeated, last is empty': (['--config='], 'config: no config file given'),
  'no value for --config': (['--config'], 'config: no config file given', 'configs/default.py'),
  'next flag as the file': (['--config', '--config.seed=3'], 'config=--config.seed=3: no such file'),
}  # fmt: skip
WRONG_FILES = {
  'none': ([], 'config: no config file given', '--config=configs/default.py'),
  'empty': (['--config='], 'config: no config file given'),
  'positional': ([str(runs.CONFIGS / 'default.py')], 'config: no config file given'),
  'override alone': (['--config.seed=3'], 'config: no config file given'),
  'missing': (['--config=configs/nowhere.py'], 'config=configs/nowhere.py: no such file', '--config=configs/default.py'),
  'a folder': ([f'--config={runs.CONFIGS}'], f'config={runs.CONFIGS}: no such file'),
  'too long a name': ([f'--config={"a" * 5000}'], ': no such file'),
  'NUL in the name': (['--config=a\0b'], ': no such file'),
  'space before the name': ([f'--config= {runs.CONFIGS / "default.py"}'], ': no such file'),
  'an argument': ([f'{DEFAULT}:fast'], 'default.py: TypeError: get_config() takes 0', 'get_config() -> ConfigDict'),
  'of a comparison': ([f'--config={runs.CONFIGS / "compare.py"}', '--config.only=text', '--workdir=a b'], 'compare.py: is for a comparison; run python -m metalr_flax.compare --config=', "compare.py --config.only=text '--workdir=a b'"),
  'an empty argument': ([f'{DEFAULT}:'], 'default.py: TypeError: get_config() takes 0'),
}  # fmt: skip


@pytest.mark.parametrize(
  ('argv', 'parts'),
  [([DEFAULT, *argv], parts) for argv, *parts in WRONG_LINES.values()]
  + [(argv, parts) for argv, *parts in WRONG_FILES.values()],
  ids=[*WRONG_LINES, *(f'file: {name}' for name in WRONG_FILES)],
)
def test_a_wrong_command_line_is_refused_in_one_line(argv, parts, capfd):
  assert_parts(refused(parse, *argv), parts)
  assert capfd.readouterr() == ('', '')  # the caller prints the line


HEAD = 'from ml_collections import config_dict\n\n\ndef get_config():\n'
COPY = (
  f'import runpy\nfrom ml_collections import config_dict\n\n\n'
  f'def get_config(name="small"):\n'
  f'  c = runpy.run_path({str(runs.CONFIGS / "default.py")!r})["get_config"]()\n'
)
WRONG_SOURCES = {
  'syntax': ('def get_config(:\n', 'SyntaxError', 'line 1'),
  'not Python': ('seed: [0', 'SyntaxError'),
  'NUL': ('seed = 0\0\n', 'null bytes'),
  'empty': ('', "KeyError: 'get_config'", 'get_config() -> ConfigDict'),
  'no function': ('get_config = None\n', 'TypeError'),
  'raises at the top': ('1 / 0\n', 'bad.py:1: ZeroDivisionError: division by zero'),
  'raises inside': (HEAD + '  return {}[3]\n', 'bad.py:5: KeyError: 3'),
  'raises a ValueError': (HEAD + "  raise ValueError('two\\nlines')\n", 'bad.py:5: ValueError: two lines'),
  'raises an OSError': (HEAD + "  return open('/nowhere/x')\n", 'bad.py:5: FileNotFoundError', '/nowhere/x'),
  'wrong type': (HEAD + "  c = config_dict.ConfigDict({'seed': 0})\n  c.seed = 'x'\n", 'bad.py:6: TypeError'),
  'missing import': ('import nowhere_at_all\n', 'bad.py:1: ModuleNotFoundError', 'nowhere_at_all'),
  'exits': ('raise SystemExit(0)\n', 'bad.py:1: SystemExit'),
  'returns nothing': (HEAD + '  pass\n', 'must return a ConfigDict, not NoneType'),
  'returns a dict': (HEAD + "  return {'seed': 0}\n", 'must return a ConfigDict, not dict'),
  'returns an empty config': (HEAD + '  return config_dict.ConfigDict()\n', 'task.name: missing'),
  'placeholder': (HEAD + "  return config_dict.ConfigDict({'seed': config_dict.placeholder(int)})\n", 'seed=None: must be an integer'),
  'required placeholder': (HEAD + "  return config_dict.ConfigDict({'seed': config_dict.required_placeholder(int)})\n", 'RequiredValueError', 'correct that file'),
  'frozen and empty': (HEAD + '  return config_dict.FrozenConfigDict()\n', 'task.name: missing'),
  'a frozen section': (COPY + '  meta = c.meta.to_dict()\n  del c.meta\n  c.meta = config_dict.FrozenConfigDict(meta)\n  return c\n', 'immutable', 'correct that file'),
  'exits inside': (HEAD + '  raise GeneratorExit\n', 'bad.py:5: GeneratorExit'),
  'an exception without words': ('class E(Exception):\n  def __str__(self):\n    1 / 0\n\n\nraise E()\n', 'bad.py:6: E: no message'),
  'holds itself': (COPY + '  c.model.kwargs.me = c\n  return c\n', 'model: holds itself'),
  'holds its section': (COPY + '  c.model.kwargs.me = c.model\n  return c\n', 'model: holds itself'),
  'holds a list in itself': (COPY + '  x = []\n  x.append(x)\n  c.model.kwargs.x = x\n  return c\n', 'model: holds itself'),
  'holds what cannot be shown': (COPY + '  class E:\n    def __repr__(self):\n      1 / 0\n  c.model.kwargs.x = E()\n  return c\n', 'model.kwargs.x=a E: must be a number'),
  'holds a function': (COPY + '  c.model.kwargs.act = print\n  return c\n', 'model.kwargs.act=<built-in function print>: must be a number, a string'),
  'holds a class': (COPY + '  c.model.kwargs.act = int\n  return c\n', "model.kwargs.act=<class 'int'>: must be a number, a string"),
  'holds a set': (COPY + '  c.inner.kwargs.a = {1}\n  return c\n', 'inner.kwargs.a={1}: must be a number, a string'),
  'holds nan': (COPY + "  c.inner.kwargs.a = float('nan')\n  return c\n", 'inner.kwargs.a=nan: must be finite'),
  'too long to print': (COPY + '  del c.seed\n  c.seed = 10**5000\n  return c\n', 'limit (4300 digits)'),
}  # fmt: skip


@pytest.mark.parametrize(
  ('source', 'parts'),
  [(source, parts) for source, *parts in WRONG_SOURCES.values()],
  ids=WRONG_SOURCES,
)
def test_a_wrong_config_file_is_refused_in_one_line(
  source, parts, tmp_path, capfd
):
  path = tmp_path / 'bad.py'
  path.write_text(source)
  line = refused(parse, f'--config={path}')
  assert_parts(line, parts)
  assert len(line) < 300
  assert capfd.readouterr() == ('', '')
  assert list(tmp_path.iterdir()) == [path]  # no byte code beside it


# --- Good command lines: the workdir, and fields of the resolved config.

GOOD_LINES = {
  'defaults': ([DEFAULT], 'checkpoints/default', {'seed': 0, 'inner.learning_rate': 0.1, 'inner.kwargs': {}, 'task.kwargs': {'skip': 5}, 'meta.learned': {'learning_rate': 'sigmoid'}}),
  'another file': ([DIGITS], 'checkpoints/digits_mlp', {'task.name': 'digits', 'threefry_partitionable': True}),
  'tuple': ([DIGITS], 'checkpoints/digits_mlp', {'model.kwargs': {'features': [64, 128, 10]}}),
  'tuple, overridden': ([DIGITS, '--config.model.kwargs.features=(64, 10)'], 'checkpoints/digits_mlp', {'model.kwargs': {'features': [64, 10]}}),
  'reference': ([DIGITS], 'checkpoints/digits_mlp', {'task.kwargs': {'split_seed': 0}}),
  'reference, overridden': ([DIGITS, '--config.seed=3'], 'checkpoints/digits_mlp', {'seed': 3, 'task.kwargs': {'split_seed': 3}}),
  # How a flag may be written.
  'space for =': (['--config', str(runs.CONFIGS / 'default.py'), '--config.seed', '7', '--workdir', 'w'], 'w', {'seed': 7}),
  'one dash': (['-config', str(runs.CONFIGS / 'default.py'), '-config.seed=7', '-workdir=w'], 'w', {'seed': 7}),
  'override first': (['--config.seed=3', '--config.log_every', '4', DEFAULT], 'checkpoints/default', {'seed': 3, 'log_every': 4}),
  'last one counts': ([DEFAULT, '--config.seed=3', '--workdir=a', '--config.seed=4', '--workdir=b'], 'b', {'seed': 4}),
  'last file counts': ([DEFAULT, '--config.seed=3', DIGITS], 'checkpoints/digits_mlp', {'seed': 3, 'task.name': 'digits'}),
  'last file, first missing': (['--config=nowhere.py', DEFAULT], 'checkpoints/default', {}),
  'workdir with spaces': ([DEFAULT, '--workdir=my runs/a b'], 'my runs/a b', {}),
  'workdir with =': ([DEFAULT, '--workdir=lr=0.1'], 'lr=0.1', {}),
  'workdir at home': ([DEFAULT, '--workdir=~/run'], pathlib.Path.home() / 'run', {}),
  'workdir called ~': ([DEFAULT, '--workdir=./~'], '~', {}),
  'workdir with a colon': ([DEFAULT, '--workdir=a:/b'], 'a:/b', {}),
  'workdir above': ([DEFAULT, '--workdir=../w/'], '../w', {}),
  # Values.
  'zero steps': ([DEFAULT, '--config.num_outer_steps=0'], 'checkpoints/default', {'num_outer_steps': 0}),
  'largest seed': ([DEFAULT, '--config.seed=4294967295'], 'checkpoints/default', {'seed': 4294967295}),
  'hexadecimal': ([DEFAULT, '--config.seed=0x10'], 'checkpoints/default', {'seed': 16}),
  'K = 1': ([DEFAULT, '--config.meta.unroll_length=1'], 'checkpoints/default', {'meta.unroll_length': 1}),
  'int for float': ([DEFAULT, '--config.meta.learning_rate=1'], 'checkpoints/default', {'meta.learning_rate': 1.0}),
  'outer rate of 0': ([DEFAULT, '--config.meta.learning_rate=0'], 'checkpoints/default', {'meta.learning_rate': 0.0}),
  'exponent': ([DEFAULT, '--config.inner.learning_rate=1e-3'], 'checkpoints/default', {'inner.learning_rate': 0.001}),
  'nearly 1': ([DEFAULT, '--config.inner.learning_rate=0.999'], 'checkpoints/default', {'inner.learning_rate': 0.999}),
  'flag': ([DEFAULT, '--config.threefry_partitionable'], 'checkpoints/default', {'threefry_partitionable': True}),
  'flag with a value': ([DEFAULT, '--config.threefry_partitionable=true'], 'checkpoints/default', {'threefry_partitionable': True}),
  'mesh': ([DEFAULT, '--config.mesh=(2, 4)'], 'checkpoints/default', {'mesh': [2, 4]}),
  'mesh without brackets': ([DEFAULT, '--config.mesh=2,4'], 'checkpoints/default', {'mesh': [2, 4]}),
  'mesh of all': ([DEFAULT, '--config.mesh=()'], 'checkpoints/default', {'mesh': []}),
  'flag, negated': ([DIGITS, '--noconfig.threefry_partitionable'], 'checkpoints/digits_mlp', {'threefry_partitionable': False}),
  'path with spaces': ([DEFAULT, '--config.task.path=my data/a b.txt'], 'checkpoints/default', {'task.path': 'my data/a b.txt'}),
  'path with =': ([DEFAULT, '--config.task.path=a=b;c'], 'checkpoints/default', {'task.path': 'a=b;c'}),
  "user's task": ([DEFAULT, '--config.task.name=my_pkg.tasks:Sine_1'], 'checkpoints/default', {'task.name': 'my_pkg.tasks:Sine_1'}),
  "user's model": ([DEFAULT, '--config.model.name=m:M'], 'checkpoints/default', {'model.name': 'm:M'}),
  "user's optimizer": ([DEFAULT, '--config.inner.optimizer=m:make'], 'checkpoints/default', {'inner.optimizer': 'm:make'}),
  'discount': ([DEFAULT, '--config.meta.estimator=forward', '--config.meta.discount=1'], 'checkpoints/default', {'meta.estimator': 'forward', 'meta.discount': 1.0}),
  'optional field': ([DEFAULT], 'checkpoints/default', {'meta.groups': ''}),
  'optional field, given': ([DEFAULT, '--config.meta.groups=per_leaf'], 'checkpoints/default', {'meta.groups': 'per_leaf'}),
  'our own outer optimizer': ([DEFAULT, '--config.meta.optimizer=steering'], 'checkpoints/default', {'meta.optimizer': 'steering'}),
  'optional mapping': ([DEFAULT], 'checkpoints/default', {'task.loss_kwargs': {}}),
  'optional mapping, given': ([DEFAULT, "--config.task.loss_kwargs={'l2': 0.1}"], 'checkpoints/default', {'task.loss_kwargs': {'l2': 0.1}}),
  # Mappings.
  'whole mapping': ([DEFAULT, "--config.inner.kwargs={'momentum': 0.9}"], 'checkpoints/default', {'inner.kwargs': {'momentum': 0.9}}),
  'whole mapping, replaced': ([DEFAULT, "--config.task.kwargs={'noise': 2}"], 'checkpoints/default', {'task.kwargs': {'noise': 2}}),
  'emptied mapping': ([DEFAULT, '--config.task.kwargs={}'], 'checkpoints/default', {'task.kwargs': {}}),
  'nested mapping': ([DEFAULT, "--config.model.kwargs={'a': {'b': (1, None, [True])}}"], 'checkpoints/default', {'model.kwargs': {'a': {'b': [1, None, [True]]}}}),
  'name in the file': ([DEFAULT, '--config.task.kwargs.skip=9'], 'checkpoints/default', {'task.kwargs': {'skip': 9}}),
  'mapping, then its key': ([DEFAULT, "--config.task.kwargs={'skip': 1}", '--config.task.kwargs.skip=2'], 'checkpoints/default', {'task.kwargs': {'skip': 2}}),
  # What is learned.
  'other bijection': ([DEFAULT, '--config.meta.learned.learning_rate=log', '--config.inner.learning_rate=3'], 'checkpoints/default', {'inner.learning_rate': 3.0, 'meta.learned': {'learning_rate': 'log'}}),
  'two learned': ([DEFAULT, "--config.meta.learned={'learning_rate': 'log', 'decay': 'sigmoid'}", "--config.inner.kwargs={'decay': 0.95}"], 'checkpoints/default', {'inner.kwargs': {'decay': 0.95}, 'meta.learned': {'learning_rate': 'log', 'decay': 'sigmoid'}}),
  'range of its own': ([DEFAULT, '--config.meta.learned.learning_rate=sigmoid(0, 5)', '--config.inner.learning_rate=3'], 'checkpoints/default', {'inner.learning_rate': 3.0, 'meta.learned': {'learning_rate': 'sigmoid(0, 5)'}}),
  'rate not learned': ([DEFAULT, "--config.meta.learned={'decay': 'sigmoid'}", '--config.inner.learning_rate=2'], 'checkpoints/default', {'inner.learning_rate': 2.0}),
  'nothing learned': ([DEFAULT, '--config.meta.learned={}', '--config.meta.estimator=none', '--config.inner.learning_rate=2'], 'checkpoints/default', {'meta.learned': {}, 'meta.estimator': 'none'}),
}  # fmt: skip


@pytest.mark.parametrize(
  ('argv', 'workdir', 'fields'), GOOD_LINES.values(), ids=GOOD_LINES
)
def test_a_good_command_line_resolves(argv, workdir, fields, capfd):
  arguments = parse(*argv)
  assert arguments.workdir == pathlib.Path(workdir)
  for field, expected in fields.items():
    value = arguments.config
    for name in field.split('.'):
      value = value[name]
    assert value == expected
    assert type(value) is type(expected)
  assert_resolved(arguments.config)
  assert capfd.readouterr() == ('', '')


def test_a_frozen_config_may_be_overridden(tmp_path):
  path = tmp_path / 'frozen.py'
  path.write_text(COPY + '  return config_dict.FrozenConfigDict(c)\n')
  argv = ['--config.seed=3', '--config.task.kwargs.skip=2']
  frozen = parse(f'--config={path}', *argv).config
  assert frozen == parse(DEFAULT, *argv).config


def assert_resolved(config):
  """`config.json` gives back the very same config."""
  text = json.dumps(config, allow_nan=False)
  assert json.dumps(json.loads(text)) == text
  assert check.resolve(config) == config


@pytest.mark.parametrize(
  'path',  # but for comparisons', which have fields and tests of their own
  sorted({*runs.CONFIGS.glob('*.py')} - {*runs.CONFIGS.glob('compare*.py')}),
  ids=lambda p: p.stem,
)
def test_every_config_of_the_repository_is_good(path):
  arguments = parse(f'--config={path}')
  assert arguments.workdir == pathlib.Path('checkpoints') / path.stem
  assert_resolved(arguments.config)


def test_the_command_is_the_same_without_its_workdir():
  argv = [
    DEFAULT,
    '--config.task.path=a b',
    '--workdir',
    'x',
    '--config.seed=3',
  ]
  command = parse(*argv, '--workdir=y').command
  words = shlex.split(command)
  assert words[:3] == ['python', '-m', 'metalr_flax.main']
  assert words[3:] == [DEFAULT, '--config.task.path=a b', '--config.seed=3']
  assert parse(*words[3:]).config == parse(*argv).config


@pytest.mark.parametrize('flag', ['--help', '-help', '-h'])
def test_help_goes_before_every_mistake(flag, capsys):
  with pytest.raises(SystemExit) as caught:
    parse('--config=nowhere.py', '--nonsense', flag)
  assert caught.value.code == 0
  said = capsys.readouterr().out
  assert said.startswith('usage\n')
  for name, field in schema.FIELDS.items():
    assert f'  {name} ' in said
    assert field.meaning.split()[0] in said
  assert "forward, none, reverse ['forward']" in ' '.join(said.split())
  assert max(map(len, said.splitlines())) <= 80


def test_a_config_names_what_differs_from_the_defaults(tmp_path):
  path = tmp_path / 'short.py'
  path.write_text(
    HEAD + "  return config_dict.ConfigDict({'task': {'name': 'digits'}, "
    "'model': {'name': 'mlp'}})\n"
  )
  short = parse(f'--config={path}', '--config.meta.unroll_length=3').config
  assert short['meta']['unroll_length'] == 3
  flat = dict(check.flatten_fields(short))
  for name, field in schema.FIELDS.items():
    if name not in ('task.name', 'model.name', 'meta.unroll_length'):
      default = [] if field.default == () else field.default  # as JSON has it
      assert flat[name] == default, name
      assert field.rule.holds(field.default)
  assert schema.FIELDS['meta.learned'].default == {'learning_rate': 'sigmoid'}


def test_a_config_file_may_take_an_argument(tmp_path):
  path = tmp_path / 'sized.py'
  sizes = '{"small": 1, "a:b": 64}'
  path.write_text(COPY + f'  c.task.batch_size = {sizes}[name]\n  return c\n')
  assert parse(f'--config={path}').config['task']['batch_size'] == 1
  arguments = parse(f'--config={path}:a:b')
  assert arguments.config['task']['batch_size'] == 64
  assert arguments.workdir == pathlib.Path('checkpoints/sized')
  refused(parse, f'--config={path}:large')


def test_a_placeholder_is_filled_on_the_command_line(tmp_path):
  path = tmp_path / 'open.py'
  path.write_text(
    COPY + '  del c.seed\n  c.seed = config_dict.placeholder(int)\n  return c\n'
  )
  assert refused(parse, f'--config={path}').startswith('seed=None: ')
  assert parse(f'--config={path}', '--config.seed=3').config['seed'] == 3


def test_one_config_file_does_not_leak_into_the_next(tmp_path):
  parse(DEFAULT)
  path = tmp_path / 'empty.py'
  path.write_text('')
  assert "KeyError: 'get_config'" in refused(parse, f'--config={path}')


def test_an_edited_config_file_is_read_again(tmp_path):
  """Byte code kept by time and size would give the old seed."""
  path = tmp_path / 'edited.py'
  source = (runs.CONFIGS / 'default.py').read_text()
  for seed in (1, 2, 3):
    path.write_text(re.sub(r'seed = \d', f'seed = {seed}', source, count=1))
    assert parse(f'--config={path}').config['seed'] == seed


def test_resolve_leaves_its_argument_alone():
  config = config_dict.ConfigDict(good())
  config.task.kwargs.skip = config.get_ref('seed')
  config.model.kwargs.a = (1, (2, 3))
  before = config.copy_and_resolve_references()
  resolved = check.resolve(config.to_dict())
  assert resolved['task']['kwargs']['skip'] == 0
  assert resolved['model']['kwargs']['a'] == [1, [2, 3]]
  resolved['task']['kwargs']['skip'] = 7
  assert config.copy_and_resolve_references() == before
  assert config.model.kwargs.a == (1, (2, 3))


# --- What nobody thought of.

KEYS = st.sampled_from(['learning_rate', 'decay', 'eps', 'skip', 'a b', '{}'])
KNOWN = st.sampled_from(
  [
    *rules.TASKS,
    *rules.MODELS,
    *rules.OPTIMIZERS,
    *rules.ESTIMATORS,
    *ranges.RANGES,
    'a.b:C',
  ]
)


def nested(leaves, keys):
  return st.recursive(
    leaves,
    lambda inner: (
      st.lists(inner, max_size=3)
      | st.tuples(inner)
      | st.dictionaries(keys, inner, max_size=3)
    ),
    max_leaves=5,
  )


RATES = st.floats(min_value=1e-6, max_value=0.9)
PLAIN = nested(
  st.none()
  | st.booleans()
  | st.integers(-9, 2**33)
  | RATES
  | KNOWN
  | st.text(),
  KEYS,
)
ODD = nested(
  st.integers() | st.floats() | st.just(10**400) | st.binary() | st.just(KEYS),
  KEYS | st.text() | st.none() | st.integers(),
)
# Most values fit their fields, so that many configs are good ones.
FITTING = {
  name: {
    'seed': st.integers(0, 9),
    'task.path': st.text(),
    'threefry_partitionable': st.booleans(),
    'mesh': st.sampled_from([(), [], [1, 1], (2, 4)]),
    'inner.learning_rate': RATES,
    'meta.learning_rate': RATES | st.just(0),
    'meta.learned': st.dictionaries(
      KEYS, st.sampled_from(['log', 'sigmoid', 'sigmoid(0, 2)']), min_size=1
    ),
    'meta.estimator': st.sampled_from(rules.ESTIMATORS),
    'meta.remat': st.sampled_from(rules.REMATS),
    'meta.curvature': st.sampled_from(rules.CURVATURES),
    'meta.objective': st.sampled_from(rules.OBJECTIVES),
    'meta.subsample': RATES,
    'meta.discount': st.sampled_from([0, 0.0, 0.5]),
    'meta.groups': st.sampled_from(['', 'per_leaf', 'a.b:c']),
  }.get(
    name,
    st.dictionaries(KEYS, PLAIN, max_size=3)
    if name in schema.MAPPINGS
    else KNOWN
    if name.endswith(('name', 'optimizer'))
    else st.integers(1, 2**40),
  )
  for name in schema.FIELDS
}
FIELDS = st.sampled_from(sorted(FITTING)).flatmap(
  lambda name: st.tuples(
    st.just(name), st.one_of(*[FITTING[name]] * 6, PLAIN, ODD)
  )
)
OTHERS = st.tuples(
  st.sampled_from(['meta', 'task', 'sed', 'meta.new', 'inner.kwargs', '']), ODD
)


def assert_resolved_or_refused(function, *args):
  try:
    config = function(*args)
  except errors.MetalrError as error:
    refusal = error
  else:
    assert_resolved(config)
    return
  assert refusal.status == 2
  assert re.fullmatch(r'[^\n]+; [^\n]+', str(refusal))


@given(st.lists(st.one_of(*[FIELDS] * 9, OTHERS), min_size=1, max_size=4))
@example([('meta.learned', {'learning_rate': ['sigmoid']})])
@example([('inner.learning_rate', 10**400)])
@example([('seed', 10**5000)])
def test_no_config_ends_in_another_exception(pairs):
  assert_resolved_or_refused(check.resolve, changed(pairs))


@given(st.dictionaries(KEYS | st.sampled_from(sorted(FITTING)), ODD | PLAIN))
@example({})
@example({1: 2})
@example({'task.name': 'digits'})
def test_no_mapping_ends_in_another_exception(config):
  assert_resolved_or_refused(check.resolve, config)


def as_argument(pair):
  return '--config.{}={}'.format(*pair)


NOISE = st.one_of(
  OTHERS.map(as_argument),
  st.builds('--config.{}'.format, st.sampled_from(sorted(FITTING))),
  st.builds('--noconfig.{}'.format, st.sampled_from(sorted(FITTING))),
  st.builds('{}config.{}={}'.format, st.just('--'), st.text(), st.text()),
  st.builds('--config.inner.kwargs.{}={}'.format, KEYS | st.text(), ODD),
  st.sampled_from(['--workdir', '--workdir=', '--config=', '--config', '--']),
  st.text(),
)


@given(
  st.lists(
    st.one_of(*[FIELDS.map(as_argument)] * 9, NOISE), min_size=1, max_size=4
  )
)
@example(['--flagfile=/nowhere'])
@example(['--config=' + 'a' * 5000])
def test_no_command_line_ends_in_another_exception(argv):
  def resolve():
    return parse(DEFAULT, *argv).config

  if not {'-h', '--help', '-help'} & set(argv):
    assert_resolved_or_refused(resolve)


# --- The names that config.py repeats, so that it need not import JAX.


def test_the_names_of_config_are_the_ones_there_are():
  assert sorted(rules.TASKS) == sorted(tasks.TASKS)
  assert sorted(rules.MODELS) == sorted(models.MODELS)
  assert sorted(rules.ESTIMATORS) == sorted(meta_gradient.KINDS)
  assert sorted(rules.OBJECTIVES) == sorted(meta_gradient.OBJECTIVES)
  assert sorted(rules.CURVATURES) == sorted(curvature.CURVATURES)
  assert sorted(rules.REMATS) == sorted(inner.REMATS)


@pytest.mark.parametrize('name', rules.CURVATURES)
def test_every_curvature_is_one_of_the_estimators(name):
  estimator = meta_gradient.Estimator(curvature=name)
  assert callable(estimator.grad_fn(lambda params, model_state, batch: None))


@pytest.mark.parametrize('spec', [*ranges.RANGES, 'sigmoid(0.25, 0.75)'])
def test_every_bijection_has_the_range_that_config_holds(spec):
  _, low, high = ranges.parse(spec)
  inside = (low + min(high, 1.0)) / 2
  fields = {'meta.learned': {'learning_rate': spec}}
  check.resolve(changed({**fields, 'inner.learning_rate': inside}))
  for outside in {low, high} - {math.inf}:
    line = refused(
      check.resolve, changed({**fields, 'inner.learning_rate': outside})
    )
    assert line.startswith('inner.learning_rate=')
  bijection = bijections.make_bijection(spec)
  assert bijection.constrain(bijection.unconstrain(inside)) == inside
  ends = [float(bijection.constrain(eta)) for eta in bijection.eta_range]
  assert low < min(ends) < inside < max(ends) < high


def test_the_names_of_config_are_sorted_and_single():
  for names in (
    rules.TASKS,
    rules.MODELS,
    rules.OPTIMIZERS,
  ):
    assert list(names) == sorted(set(names))


# noisy_sgd asks for a key that the config cannot give it yet.
@pytest.mark.thorough
@pytest.mark.filterwarnings('ignore:Specifying a key will be required')
@pytest.mark.parametrize('name', rules.OPTIMIZERS)
def test_every_optimizer_is_one_of_optax_and_updates(name):
  factory = getattr(optax, name)
  assert 'learning_rate' in inspect.signature(factory).parameters
  params = {'w': jnp.full((2, 3), 0.5), 'b': jnp.full(3, 0.5)}
  grads = jax.tree.map(lambda p: 0.1 * p, params)
  tx = factory(learning_rate=0.1)
  updates, _ = tx.update(grads, tx.init(params), params)
  updated = optax.apply_updates(params, updates)
  for before, after in zip(
    jax.tree.leaves(params), jax.tree.leaves(updated), strict=True
  ):
    assert after.dtype == before.dtype
    assert jnp.all(jnp.isfinite(after))
    assert jnp.any(after != before)


# --- Populations.


def test_a_population_says_its_seeds_and_is_then_what_it_was():
  config = check.resolve(changed({'population': {'seed': 3}, 'seed': 7}))
  assert config['population'] == {'seed': [7, 8, 9]}
  assert check.resolve(copy.deepcopy(config)) == config


def test_members_have_their_own_values_and_nothing_else():
  own = {'decay': [0.9, 0.8]}
  config = check.resolve(
    changed(
      {
        'meta.learned': {'learning_rate': 'sigmoid', 'decay': 'sigmoid'},
        'population': {'seed': [4, 5], 'inner': {'kwargs': own}},
      }
    )
  )
  first, second = population.members_of(config)
  assert (first['seed'], second['seed']) == (4, 5)
  assert second['inner']['kwargs'] == {'decay': 0.8}
  assert first['population'] == {}
  assert config['inner']['kwargs'] == {}
  for member in (first, second):
    assert check.resolve(copy.deepcopy(member)) == member
  assert population.count(config) == 2
  assert population.count(first) == 0
  assert population.members_of(first) == [first]
