"""Checks a comparison's config without importing JAX."""

from collections.abc import Iterator, Mapping, Sequence
import re
from typing import Any

from metalr_flax import errors
from metalr_flax.comparison import methods as methods_lib
from metalr_flax.config import check as check_lib
from metalr_flax.config import rules
from metalr_flax.config import schema

UNSEEN = 'unseen'  # loss on data that is neither trained nor tuned on
OBJECTIVES = ('task', 'batches', UNSEEN)
DECAYS = 'weight_decays'

_SECTIONS = ('task', 'model')
_COUNTS = {
  'num_steps': rules.POSITIVE_INT32,
  'num_seeds': rules.POSITIVE_INTEGER,
  'num_evaluations': rules.POSITIVE_INTEGER,
}
_PROBLEM = (*_SECTIONS, *_COUNTS, 'objective', DECAYS)
_RATES = rules.Rule(
  'must be a list of learning rates', lambda v: isinstance(v, (list, tuple))
)
_DECAY_RATES = rules.Rule(
  'must be a list of weight decays', lambda v: isinstance(v, (list, tuple))
)
_NAMES = rules.Rule(
  'must be known names, with commas', lambda v: isinstance(v, (list, tuple))
)
FIELDS: dict[str, schema.Field] = {
  'seed': schema.Field(rules.SEED, 'of the first run; others have the next', 0),
  'num_seeds': schema.Field(
    rules.POSITIVE_INTEGER, 'runs from each setting', 5
  ),
  'num_evaluations': schema.Field(
    rules.POSITIVE_INTEGER,
    'how often a run is evaluated; the mean of the last tenth is its result',
    40,
  ),
  'methods': schema.Field(
    _NAMES, 'what to run now', tuple(methods_lib.METHODS)
  ),
  'only': schema.Field(_NAMES, 'the problems to run now, () for all', ()),
  'optimizers': schema.Field(
    rules.MAPPING,
    'the inner optimizers, with their arguments other than the rate',
    {'sgd': {'momentum': 0.9}, 'rmsprop': {}, 'adam': {}},
  ),
  'learning_rates': schema.Field(
    _RATES,
    'the grid of constant, cosine and linear',
    (1e-6, 3e-6, 1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0),
  ),
  'initial_learning_rates': schema.Field(
    _RATES,
    'where self_tuning and trainer start',
    (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 0.1, 1.0),
  ),
  # Without a default in a resolved config: those of before had none.
  DECAYS: schema.Field(
    _DECAY_RATES, "the grid's second axis for the objective 'unseen', if any"
  ),
  'problems': schema.Field(
    rules.MAPPING,
    'what is trained: for each name task.* and model.* as of a training '
    'config, num_steps, and where they differ num_seeds, num_evaluations, '
    f'{DECAYS} and objective ({", ".join(OBJECTIVES)})',
  ),
}
_NAME = re.compile(r'[A-Za-z0-9_-]+')  # it becomes a part of a file's name


def resolve(config: Mapping[str, Any]) -> dict[str, Any]:
  """Checks a comparison's config and returns it as plain JSON values.

  Args:
    config: nested mapping of the fields of `configs/compare.py`.

  Returns:
    The same with every problem's own `num_seeds`, `num_evaluations`,
    `objective` and, where that is 'unseen', `weight_decays` filled in, and the
    names of `methods` and `only` as lists.

  Raises:
    ConfigError: naming the first field that is unknown, missing or wrong.
  """
  plain = schema.to_plain(config)
  for name in plain:
    check_name(name)
  plain = {**schema.to_plain(_defaults()), **plain}
  if 'problems' not in plain:
    raise errors.ConfigError(
      'problems: missing; add it to the config file (see configs/compare.py)'
    )
  _check_rule('seed', plain['seed'], rules.SEED)
  for name in ('num_seeds', 'num_evaluations'):
    _check_rule(name, plain[name], rules.POSITIVE_INTEGER)
  for name in ('learning_rates', 'initial_learning_rates'):
    _check_rates(name, plain[name])
  if DECAYS in plain:
    _check_decays(DECAYS, plain[DECAYS])
  for name in ('optimizers', 'problems'):
    _check_mapping(name, plain[name])
  for name, kwargs in plain['optimizers'].items():
    _check_optimizer(name, kwargs)
  plain['methods'] = _names(
    'methods', plain['methods'], tuple(methods_lib.METHODS)
  )
  for name, problem in plain['problems'].items():
    _check_problem(plain, name, problem)
  _check_one_decay(plain)
  plain['only'] = _names('only', plain['only'], tuple(plain['problems']))
  return plain


def _defaults() -> dict[str, Any]:
  defaults = {name: field.default for name, field in FIELDS.items()}
  return {name: v for name, v in defaults.items() if v is not None}


def check_name(name: str) -> None:
  """Refuses the name of a field that a comparison's config does not have.

  Args:
    name: dotted, e.g. `problems.text.num_steps`.

  Raises:
    ConfigError: with the nearest name there is.
  """
  top, *below = name.split('.')
  if top not in FIELDS:
    near = check_lib.suggest(top, FIELDS)
    raise errors.ConfigError(f'{name}: unknown field; {near}')
  if top != 'problems' or len(below) < 2:
    return
  inner = '.'.join(below[1:])
  if inner in _PROBLEM:
    return
  if below[1] in _SECTIONS:
    check_lib.check_name(inner, f'problems.{below[0]}.')
    return
  near = check_lib.suggest(below[1], _PROBLEM)
  raise errors.ConfigError(f'{name}: unknown field; {near}')


def _check_problem(
  config: Mapping[str, Any], name: str, problem: dict[str, Any]
) -> None:
  where = f'problems.{name}'
  _check_mapping(where, problem)
  if not _NAME.fullmatch(name):
    raise errors.ConfigError(
      f'{where}: its name becomes a file name; use letters, digits, - and _'
    )
  for key in problem:
    check_name(f'{where}.{key}')
  for key in ('num_seeds', 'num_evaluations'):
    problem.setdefault(key, config[key])
  problem.setdefault('objective', 'task')
  for key in (*_SECTIONS, 'num_steps'):
    if key not in problem:
      raise errors.ConfigError(
        f'{where}.{key}: missing; add it to the config file'
      )
  for key in _SECTIONS:
    _check_mapping(f'{where}.{key}', problem[key])
  for key, rule in _COUNTS.items():
    _check_rule(f'{where}.{key}', problem[key], rule)
  _check_counts(where, problem)
  if problem['objective'] not in OBJECTIVES:
    raise errors.ConfigError.of(
      f'{where}.objective',
      problem['objective'],
      'must be a known objective',
      check_lib.suggest(str(problem['objective']), OBJECTIVES),
    )
  _fill_decays(config, where, problem)
  for key in _SECTIONS:
    check_lib.check_section(key, problem[key], f'{where}.')


def _fill_decays(
  config: Mapping[str, Any], where: str, problem: dict[str, Any]
) -> None:
  """Gives a problem of unseen data the comparison's weight decays, if any."""
  if problem['objective'] == UNSEEN:
    problem.setdefault(DECAYS, config.get(DECAYS, []))
    _check_decays(f'{where}.{DECAYS}', problem[DECAYS])
  elif DECAYS in problem:
    raise errors.ConfigError(
      f'{where}.{DECAYS}: are compared by the loss on unseen data alone; leave '
      f'them out or set --config.{where}.objective={UNSEEN}'
    )


def _check_one_decay(config: Mapping[str, Any]) -> None:
  """Refuses a weight decay of an optimizer beside those of the grid."""
  gridded = any(problem.get(DECAYS) for problem in config['problems'].values())
  for name, kwargs in config['optimizers'].items():
    if gridded and 'weight_decay' in kwargs:
      raise errors.ConfigError(
        f'optimizers.{name}.weight_decay: comes from {DECAYS}; leave it out of '
        f'one of the two'
      )


def _check_counts(where: str, problem: Mapping[str, Any]) -> None:
  steps, points = problem['num_steps'], problem['num_evaluations']
  window = methods_lib.UNROLL_LENGTH
  if steps % window:
    raise errors.ConfigError.of(
      f'{where}.num_steps',
      steps,
      f"must be a multiple of {window}, the trainer's window",
      f'set --config.{where}.num_steps={steps + -steps % window}',
    )
  if points > steps // window:
    raise errors.ConfigError.of(
      f'{where}.num_evaluations',
      points,
      f"must be at most {steps // window}, one for each of the trainer's "
      f'windows',
      'set fewer, or a larger num_steps',
    )


def _check_rule(name: str, value: Any, rule: rules.Rule) -> None:
  if not rule.holds(value):
    raise errors.ConfigError.of(
      name, value, rule.text, f'set --config.{name}=...'
    )


def _check_mapping(name: str, value: Any) -> None:
  if not isinstance(value, dict) or (not value and '.' not in name):
    raise errors.ConfigError.of(
      name,
      value,
      'must be a mapping of names',
      'see configs/compare.py',
    )


def _check_rates(name: str, rates: Any) -> None:
  if not isinstance(rates, list) or not rates:
    raise errors.ConfigError.of(name, rates, _RATES.text, 'e.g. 1e-3,1e-2')
  for rate in rates:
    _check_rule(name, rate, rules.POSITIVE_NUMBER)
  _check_ascends(name, rates)


def _check_decays(name: str, decays: Any) -> None:
  if not isinstance(decays, list):
    raise errors.ConfigError.of(
      name, decays, _DECAY_RATES.text, 'e.g. 0.0,0.1, or ()'
    )
  for decay in decays:
    _check_rule(name, decay, rules.NUMBER)
  _check_ascends(name, decays)


def _check_ascends(name: str, values: list[Any]) -> None:
  if sorted(set(values)) != values:
    raise errors.ConfigError.of(
      name, values, 'must ascend without repetition', 'sort it'
    )


def _check_optimizer(name: str, kwargs: Any) -> None:
  if name not in rules.OPTIMIZERS:
    raise errors.ConfigError.of(
      'optimizers',
      name,
      'must be a known optax optimizer',
      check_lib.suggest(name, rules.OPTIMIZERS),
    )
  _check_mapping(f'optimizers.{name}', kwargs)
  if 'learning_rate' in kwargs:
    raise errors.ConfigError(
      f'optimizers.{name}.learning_rate: comes from the grid; leave it out'
    )


def _names(field: str, given: Any, known: tuple[str, ...]) -> list[str]:
  """Names from a list whose items may hold several, as flags give them."""
  listed = given if isinstance(given, list) else [given]
  names = list(_split(listed))
  for name in names:
    if name not in known:
      raise errors.ConfigError.of(
        field, name, 'must be a known name', check_lib.suggest(name, known)
      )
  if field == 'methods' and not names:
    raise errors.ConfigError(
      f'{field}: names no method; known are {", ".join(known)}'
    )
  return [name for name in known if name in names]


def _split(items: Sequence[Any]) -> Iterator[str]:
  for item in items:
    yield from filter(None, (part.strip() for part in str(item).split(',')))
