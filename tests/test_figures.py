"""Figures in README.md and docs/ are those of the result files.

A phrase is written here as it stands in the document, with a format for each
figure; what the result file gives must make the document's own words of it.
After a benchmark ran again these tests say what to write.
"""

import csv
import itertools
import json
import math
import pathlib
import re
import statistics
import sys

import pytest

sys.path.append(str(pathlib.Path(__file__).parents[1] / 'benchmarks'))
import large_model
import large_model_report
import readme
import results
import scaling

ROOT = pathlib.Path(__file__).parents[1]

RESULTS = ROOT / 'benchmarks/results'
README = 'README.md'
OWN_LOOP = 'docs/own_loop.md'
CONFIG = 'configs/digits_regularized.py'
TUNING = 'docs/self_tuning.md'
ENGINE = 'docs/meta_gradients.md'
RELIABILITY = 'docs/reliability.md'
SCALE = 'docs/scale.md'
DEVICES = 'docs/devices.md'
LARGE_MODELS = 'docs/large_models.md'


def load(name):
  return json.loads((RESULTS / name).read_text())


REFERENCE = load('reference_run.json')
CHECKPOINT = load('checkpoint.json')
CURVATURE = load('curvature.json')
COMPARISON = load('comparison/summary.json')
OVERALL = COMPARISON['overall']
AGAINST = OVERALL['geometric_mean_against']
DIVERGED = OVERALL['diverged_runs']
MODELS = load('meta_gradient.json')['problems']
TEXT = load('text_transformer.json')
HELD_OUT = load('held_out.json')['overall']
SIZE = load('held_out_size.json')
KNOWN = load('known_answers.json')['results']
DIGITS = load('digits_regularized.json')
CONFIGS = load('configs.json')
STARTS = load('start_up.json')
STREAMING = load('streaming.json')
SCALING = load('scaling.json')['rows']
LARGE = load('large_model.json')
COST = load('held_out_cost.json')
BYTES = load('bytes_per_parameter.json')
START = 1e-5  # where self_tuning starts from any rate above
CAP = COMPARISON['rules']['cap_in_geometric_means']
with (RESULTS / 'comparison/comparison.csv').open() as file:
  RUNS = list(csv.DictReader(file))
GRID = {run['learning_rate'] for run in RUNS if run['method'] == 'constant'}


def ratios(kind, *problems):
  """self_tuning's ratios to the best constant: by (problem, optimizer)."""
  return {
    (p['problem'], p['optimizer']): p['self_tuning'][kind]
    for p in COMPARISON['pairs']
    if not problems or p['problem'] in problems
  }


def medians(problem, *optimizers):
  return [ratios('median', problem)[problem, name] for name in optimizers]


def count_runs(start):
  """Seeds of all pairs: what one start of self_tuning has."""
  return sum(
    run['method'] == 'self_tuning' and float(run['learning_rate']) == start
    for run in RUNS
  )


def geometric_mean(against):
  """self_tuning's score over a best rate's, from the start of most rates."""
  logs = []
  for pair in COMPARISON['pairs']:
    place = pair['self_tuning']['starts'].index(START)
    ratio = pair['self_tuning']['scores'][place] / pair[against]['score']
    assert 1 / CAP < ratio < CAP
    logs.append(math.log(ratio))
  return math.exp(statistics.mean(logs))


def cost(model, key):
  """Least and largest of the drop-in's cost on models of a kind."""
  rows = [r for r in load('self_tuning.json') if r['model'].startswith(model)]
  return min(r[key] for r in rows), max(r[key] for r in rows)


def size(estimator, length, over='plain'):
  """Memory on the MLP, over another estimator's."""
  memory = MODELS['mlp']['memory']
  return memory[estimator]['bytes'][length] / memory[over]['bytes'][length]


def times(estimator, models=('mlp',)):
  """Times over plain training at K = 8 and 64."""
  return [
    MODELS[m]['time'][k][estimator]['ratio']
    for m in models
    for k in ('8', '64')
  ]


def extremes(values):
  return min(values), max(values)


def cosines(kind):
  values = CURVATURE[kind]
  return statistics.median(values), sum(v > 0 for v in values), len(values)


def saving(name):
  row = CHECKPOINT[name]
  return (
    row['as it is']['ms'],
    row['without both']['ms'],
    row['as it is']['ratio to without both'],
    row['as it is']['held up ms'],
  )


def at_the_edge(problem):
  pairs = [p for p in COMPARISON['pairs'] if p['problem'] == problem]
  return sum(p['cosine']['at_the_edge'] for p in pairs), len(pairs)


def held_out(mode, against, *keys):
  """self_tuning's test loss with held-out data over a search's."""
  found = HELD_OUT[mode]['ours_over'][against]
  return tuple(found[key] for key in keys)


def over_grid(task):
  """The same over the grid's pick at the end, by optimizer."""
  cells = load('held_out.json')['cells']
  return {
    c['optimizer']: c['end']['ours_over']['grid']
    for c in cells
    if c['task'] == task
  }


CLASSES = 'classes, linear', 'classes, network'


def by_rule(task, *parts):
  """Test losses over those of the most held-out examples: mean and worst."""
  found = SIZE['overall']['rule'][task]
  return [found[part][key] for part in parts for key in ('mean', 'worst')]


def of_classes(part):
  means, worsts = zip(*(by_rule(task, part) for task in CLASSES), strict=True)
  return statistics.geometric_mean(means), max(worsts)


def with_size(learned, n, key='over_largest'):
  """A figure of each task, stopped early, for n held-out examples."""
  place = SIZE['sizes'].index(n)
  return [rows[learned]['early'][key][place] for rows in SIZE['tasks'].values()]


def excesses(learned, n):
  return [ratio - 1 for ratio in extremes(with_size(learned, n))]


def furthest():
  """The largest relative distance of a found value from the right one."""
  return max(abs(r[end] - 1) for r in KNOWN for end in ('least', 'most'))


def unseen_digits(name, key='loss'):
  found = next(runs for n, runs in DIGITS.items() if n.startswith(name))
  return statistics.mean(run[key] for run in found)


def held_out_cost(kind, models):
  """Least and most over AdamW alone: without any, for m = 16, 4 and 1."""
  rows = [r for r in COST if models in r['model']]
  return [
    end
    for variant in ('no held-out data', 'm = 16', 'm = 4', 'm = 1')
    for end in extremes([row[kind][variant] for row in rows])
  ]


def copied():
  """Memory of the MLPs where the cond is around the whole update."""
  rows = [r for r in COST if 'MLP' in r['model']]
  return extremes(
    [r['memory_ratio']['m = 4, update in the cond'] for r in rows]
  )


def drop_in_bytes(name):
  """Bytes per parameter: each part, all of them, and of a running step."""
  parts = BYTES['kept']['float32'][name].values()
  return *parts, sum(parts), *BYTES['running'][name].values()


def trainer_bytes(name):
  row = BYTES['trainer'][name]
  return *row['kept'].values(), *row['running'].values()


def moved(way, axis):
  """Bytes that 8 devices move: whole, shared and a device's, in MB.

  The whole ones over the params last.
  """
  (found,) = (
    each
    for each in scaling.split_bytes(SCALING)
    if (each.way, each.axis) == (way, axis)
  )
  whole, shared = found.whole, found.shared
  own = whole + shared / 8
  params = 4 * SCALING[0]['params']
  return whole / 1e6, shared / 1e6, own / 1e6, whole / params


def of_eight(way, mesh):
  """A device of 8: operations, memory, and what is exchanged, in MB."""
  alone, row = (
    next(r for r in SCALING if r['way'] == way and r['mesh'] == [*m])
    for m in ((1, 1), mesh)
  )
  exchanged = (
    row['exchanged'].get(f'all-{k}', 0) for k in ('reduce', 'gather')
  )
  return (
    row['operations'] * 8 / alone['operations'],
    row['bytes_kept'] / 1e6,
    alone['bytes_kept'] / 1e6,
    *(nbytes / 1e6 for nbytes in exchanged),
    row['bytes_moved'] * 8 / alone['bytes_moved'],
  )


def gathered_in_parts():
  """Trees of params that a program of microbatches gathers."""
  (row,) = (row for row in LARGE['rows'] if row['role'] == 'shown')
  return row['compiled']['gathered'] / 4 / row['compiled']['params']


CHECKED = {
  'params': 'number of params',
  'state': 'memory kept',
  'gathered': 'gathered',
  'summed': 'summed',
  'operations': 'operations',
  'temporary': 'memory of a running step',
}
DROP_INS = {
  'sgd': 'SGD, its rate',
  'sgd, momentum': 'SGD with momentum, its rate',
  'adam': 'Adam, its rate',
  'adamw': 'AdamW, its rate',
  'adamw, rate and decay': 'AdamW, rate and weight decay',
  'adamw, rate and b1': 'AdamW, rate and b1',
}
TRAINERS = {
  'plain': '`none`: plain training',
  'forward': '`forward`',
  'forward, 3 learned': '`forward`, three learned',
  'forward, no curvature': '`forward`, no curvature, discount 0.99',
  'reverse': '`reverse`',
}
DROP_IN_ROW = '| {} | ' + '{:.0f} | ' * 5 + '{:.1f} / {:.1f} |'
TRAINER_ROW = '| {} | ' + '{:.0f} | ' * 3 + '{:.1f} / {:.1f} |'
FITS = SIZE['overall']['fits']
LOOPS, COMMANDS = REFERENCE['loops'], REFERENCE['commands']
NOISY = 'noisy_quadratic', 'ill_conditioned_regression', 'drifting_target'
OURS, CONSTANT = DIVERGED['self_tuning'], DIVERGED['constant']
ALL = tuple(MODELS)
SAVING_ROW = '| {} | {:.0f} ms | {:.0f} ms | {:.2f} | {:.0f} ms |'
# (document, its words, the figures)
FIGURES = [
  (README, "best constant of {} rates / of the best cosine and the best linear decay with warm-up, which know the run's length (geometric mean over {} problems x optimizers, {} runs) | {:.2f}x / {:.2f}x and {:.2f}x |", (len(GRID), len(COMPARISON['pairs']), count_runs(START), *map(geometric_mean, ('constant', 'cosine', 'linear')))),
  (README, 'of one random rate and decay / of the best of 30 | {:.2f}x / {:.2f}x |', held_out('early', 'one_draw', 'mean') + held_out('early', 'grid', 'mean')),
  (README, 'some runs not stopped early ended {:.1f} times above', held_out('end', 'grid', 'worst')),
  (TUNING, 'With early stopping for everybody {:.3f} of the grid\'s pick', held_out('early', 'grid', 'mean')),
  (TUNING, "{:.2f} of one random setting at about the same cost, {:.2f} of the pick of a grid of cosines; worst cell {:.2f}", held_out('early', 'one_draw', 'mean') + held_out('early', 'cosine', 'mean') + held_out('early', 'grid', 'worst')),
  (TUNING, 'A random search needs {} runs to be level', (HELD_OUT['early']['runs_until_level']['random'],)),
  (TUNING, "At the end of the run {:.2f} of the grid's pick, {:.2f} of one random setting, and {:.2f} without held-out data", (*held_out('end', 'grid', 'mean'), *held_out('end', 'one_draw', 'mean'), HELD_OUT['end']['training_over_grid']['mean'])),
  (TUNING, "breast cancer {:.1f} to {:.1f} times the grid's pick, bars with AdamW {:.1f}", (*extremes(over_grid('breast_cancer').values()), over_grid('bars')['adamw'])),
  (TUNING, '**Take at least {}, and at least {} for each learned value**', (SIZE['overall']['least'], SIZE['overall']['per_value'])),
  (TUNING, '{} training examples and 4 of 64 features of use; {} to {} values learned by AdamW on {} to {} held-out examples', (SIZE['training'], *extremes(SIZE['learned']), *extremes(SIZE['sizes']))),
  (TUNING, 'the test loss is {:.2f} of that with 1600, at most {:.2f}; with fewer {:.2f}, at most {:.2f}.', (*of_classes('kept'), *of_classes('broken'))),
  (TUNING, 'wants more: {:.2f} (worst {:.2f}), with twice as many {:.2f} ({:.2f}), with fewer {:.2f} ({:.2f}).', by_rule('regression, network', 'kept', 'twice as many', 'broken')),
  (TUNING, 'grows about as h^{:.1f} / n for h values and n examples, the gap between test and held-out loss as h^{:.1f} / n.', (FITS['excess']['power_of_h'], FITS['gap']['power_of_h'])),
  (TUNING, 'a point lies off by a factor of {:.1f}', (max(fit['typical_error'] for fit in FITS.values()),)),
  (TUNING, "with 25 the excess is {:.0%} to {:.0%}, the grid's {:.0%} to {:.0%}", (*excesses('2', 25), *excesses('grid', 25))),
  (TUNING, "| a transformer's step | {:.2f}x to {:.2f}x | {:.2f}x to {:.2f}x | {:.2f}x to {:.2f}x | {:.2f}x to {:.2f}x |", held_out_cost('ratio', 'transformer')),
  (TUNING, "| an MLP's | {:.2f}x to {:.2f}x | {:.2f}x to {:.2f}x | {:.2f}x to {:.2f}x | {:.2f}x to {:.2f}x |", held_out_cost('ratio', 'MLP')),
  (TUNING, "memory is {:.2f}x to {:.2f}x of a transformer's and {:.2f}x to {:.2f}x of an MLP's", (*held_out_cost('memory_ratio', 'transformer')[2:4], *held_out_cost('memory_ratio', 'MLP')[2:4])),
  (TUNING, "with a `lax.cond` around the whole update {:.2f}x to {:.2f}x of the latter", copied()),
  (README, "worst of {} (a transformer's at most {:.2f}x) | {:.2f}x |", (len(load('self_tuning.json')), cost('transformer', 'ratio')[1], cost('', 'ratio')[1])),
  (README, 'unseen text in the picture\'s run (training loss {:.2f}) | {:.2f} nats |', (TEXT['train/loss'], TEXT['eval/loss'])),
  (README, 'the rate learned / with weight decay and label smoothing | {:.2f} / {:.2f} nats |', (unseen_digits('rate learned'), unseen_digits('rate, decay and'))),
  (OWN_LOOP, 'in {} runs from far below and far above it; all ended within {:.0%} of it', (sum(r['runs'] for r in KNOWN), furthest())),
  (OWN_LOOP, 'test loss {:.3f}, against {:.3f} with the rate alone and {:.3f} for the best of 100', (unseen_digits('rate, decay and'), unseen_digits('rate learned'), unseen_digits('grid'))),
  (CONFIG, 'On the test digits the loss ends at {:.3f} and the accuracy at {:.1%} (means of seeds 0-4, each its own split); with the rate alone learned in the same way it is {:.3f} and {:.1%}.', (unseen_digits('rate, decay and'), unseen_digits('rate, decay and', 'accuracy'), unseen_digits('rate learned'), unseen_digits('rate learned', 'accuracy'))),
  ('docs/training.md', 'takes {:.2f} times what importing JAX, Flax, optax and Orbax and compiling the program cost by themselves, and {:.2f} times with the program kept', (STARTS['cold']['ratio'], STARTS['warm']['ratio'])),
  (RELIABILITY, '{} kills in {} runs', (STREAMING['kills']['kills'], STREAMING['kills']['identical_runs'])),
  *(
    (DEVICES, f'| {name} | `{mesh}` | {{:.3f}} | {{:.2f}} of {{:.2f}} MB | {{:.2f}}, {{:.2f}} MB |', of_eight(way, mesh))
    for name, way in (('none, plain training', 'plain'), ('without the Hessian, online', 'no Hessian, online'))
    for mesh in ((8, 1), (1, 8))
  ),
  (DEVICES, 'falls less: {:.2f} and {:.2f} eighths', [of_eight('plain', m)[-1] for m in ((8, 1), (1, 8))]),
  *(
    (DEVICES, f'| {name} | `{axis}` | {{:.1f}} | {{:.1f}} | {{:.1f}} |', moved(way, axis)[:3])
    for axis in ('data', 'model')
    for name, way in (('none, plain training', 'plain'), ('without the Hessian, online', 'no Hessian, online'))
  ),
  (DEVICES, 'all params: {:.1f} times their bytes in plain training, {:.1f} times with tangents', [moved(way, 'data')[3] for way in ('plain', 'no Hessian, online')]),
  *((DEVICES, '{:.1f} times the params in either', moved(way, 'model')[3:]) for way in ('plain', 'no Hessian, online')),
  *((DEVICES, 'part falls, {:.1f} MB in either', moved(way, 'data')[1:2]) for way in ('plain', 'no Hessian, online')),
  *(
    (LARGE_MODELS, '| {} | {:.3f} to {:.3f} | {:.0%} |', (what, *large_model_report.furthest(LARGE['rows'], key), large_model.MARGINS[key]))
    for key, what in CHECKED.items()
  ),
  (LARGE_MODELS, 'all-gathers of {:.1f} times the params', (gathered_in_parts(),)),
  (LARGE_MODELS, 'XLA compiled {} programs', (len(LARGE['rows']) - 1,)),
  ('docs/streams.md', 'trains on shards at {:.2f} of its speed on examples in memory', (STREAMING['throughput']['median_ratio'],)),
  (README, 'over plain training, any K | {:.2f}x |', (size('forward', '512'),)),
  (README, '(the digits MLP) ends {:.0f} to {:.0f} times above its best constant rate', extremes(ratios('median', 'digits_mlp').values())),
  (TUNING, 'Geometric mean {:.2f} over the best constant of the grid, {:.2f} over the best cosine, {:.2f} over the best linear decay with a warm-up', (AGAINST['constant'], AGAINST['cosine'], AGAINST['linear'])),
  (TUNING, '{:.0%} of the starts are level or better', (OVERALL['share_won'],)),
  (TUNING, "{:.2f} to {:.1f} of the best constant, but SGD's {:.2f} on the drift", (*extremes([r for pair, rs in ratios('ratios', *NOISY).items() for r in rs if pair != ('drifting_target', 'sgd')]), ratios('worst')['drifting_target', 'sgd'])),
  (TUNING, 'convolutional digits {:.2f} (Adam), {:.2f} (RMSProp), {:.1f} (SGD)', medians('digits_cnn', 'adam', 'rmsprop', 'sgd')),
  (TUNING, 'the digits MLP {:.0f}, {:.0f} and {:.0f} after 2000', medians('digits_mlp', 'adam', 'rmsprop', 'sgd')),
  (TUNING, "(digits MLP): {:.0f} to {:.0f} times the best constant's training loss", extremes(ratios('median', 'digits_mlp').values())),
  (TUNING, 'No run of {} diverged; {} of {} with constants did', (OURS['runs'] if not OURS['diverged'] else '?', CONSTANT['diverged'], CONSTANT['runs'])),
  (TUNING, "know the run's length, {:.2f} and {:.2f};", (AGAINST['prodigy_cosine'], AGAINST['dadapt_adamw_cosine'])),
  (TUNING, 'momo_adam, mechanize, prodigy, cocob {:.2f}, {:.2f}, {:.2f}, {:.2f};', [AGAINST[m] for m in ('momo_adam', 'mechanize', 'prodigy', 'cocob')]),
  (TUNING, 'dowg, dog, dadapt_adamw, schedule_free_adamw {:.2f}, {:.2f}, {:.2f}, {:.2f}.', [AGAINST[m] for m in ('dowg', 'dog', 'dadapt_adamw', 'schedule_free_adamw')]),
  (TUNING, "{:.2f}x to {:.2f}x of a transformer's step and {:.2f}x to {:.2f}x of its memory", (*cost('transformer', 'ratio'), *cost('transformer', 'memory_ratio'))),
  (TUNING, "{:.2f}x to {:.2f}x of an MLP's on 128 examples and {:.1f}x to {:.1f}x of its memory", (*cost('MLP', 'ratio'), *cost('MLP', 'memory_ratio'))),
  (ENGINE, '{:.2f}x that of plain training on the MLP; reverse mode\'s does, at K = 512 it is {:.0f}x', (size('forward', '512'), size('reverse', '512'))),
  (ENGINE, 'on the MLP {:.2f}x / {:.2f}x at K = 8 / 64', times('forward')),
  (ENGINE, 'with the Hessian on a quarter of the batch {:.2f}x / {:.2f}x', times('forward, subsample 1/4')),
  (ENGINE, 'without it {:.2f}x / {:.2f}x', times('forward, no curvature')),
  (ENGINE, "does {:.0f}x as many outer steps a second as the example's bare Python loop ({:.0f} to {:.0f})", (LOOPS['ratio'], LOOPS['ratio_min'], LOOPS['ratio_max'])),
  (ENGINE, "takes {:.2f}x the time of that loop's script", (COMMANDS['ratio'],)),
  (ENGINE, '| `forward` | constant in K | {:.1f}-{:.1f}x plain, exact', extremes(times('forward', ALL))),
  (ENGINE, '| `reverse` | grows with K | {:.0f}-{:.0f}x plain, exact', extremes(times('reverse', ALL))),
  (ENGINE, '(medians {:.2f} and {:.2f}; {} and {} of {} positive)', (cosines('subsample')[0], cosines('none')[0], cosines('subsample')[1], *cosines('none')[1:])),
  (RELIABILITY, 'A digits run of {:.0f} seconds that saves 25 times in it takes {:.2f}x its time', tuple(CHECKPOINT['a whole run'].values())),
  *((SCALE, DROP_IN_ROW, (words, *drop_in_bytes(n))) for n, words in DROP_INS.items()),
  *((SCALE, TRAINER_ROW, (words, *trainer_bytes(n))) for n, words in TRAINERS.items()),
  (SCALE, 'Adam keeps {:.0f}', (sum(BYTES['kept']['bfloat16']['adam'].values()),)),
  *((RELIABILITY, SAVING_ROW, (n, *saving(n))) for n in CHECKPOINT if n.endswith('MB')),
]  # fmt: skip
# Ratios that no benchmark gave: aims, and what plain training is by definition.
NOT_MEASURED = {
  ENGINE: {'1x'},
}
DOCUMENTS = [
  README,
  *sorted(str(p.relative_to(ROOT)) for p in ROOT.glob('docs/**/*.md')),
]


def words(document):
  text = (ROOT / document).read_text()
  return ' '.join(text.split()).replace(' %', '%')


def write(template, figures):
  return template.format(*figures)


@pytest.mark.parametrize(
  ('document', 'template', 'figures'),
  FIGURES,
  ids=[f'{document}: {template}' for document, template, _ in FIGURES],
)
def test_figures_are_those_of_the_result_files(document, template, figures):
  assert write(template, figures) in words(document)


@pytest.mark.parametrize('document', DOCUMENTS)
def test_every_ratio_is_in_the_table_above(document):
  text = words(document)
  for where, template, figures in FIGURES:
    if where == document:
      text = text.replace(write(template, figures), '')
  found = set(re.findall(r'\b\d+(?:\.\d+)?x\b', text))
  assert found <= NOT_MEASURED.get(document, set())


def test_readmes_table_is_made_by_its_command():
  text = (ROOT / README).read_text()
  assert readme.put(readme.make_table(), text) == text, (
    'change its words in benchmarks/readme.py and run that'
  )


def test_readmes_picture_is_of_the_published_comparison():
  standings = readme.read_standings(RESULTS / 'comparison')
  before = {row['method']: row for row in COMPARISON['ranking']}
  for row in standings.ranking():
    published = before.pop(row['method'])
    assert row['geometric_mean'] == pytest.approx(published['geometric_mean'])
    assert row['worst'] == pytest.approx(min(CAP, published['worst'] or CAP))
  assert not before
  methods, problems = readme.draw(standings).axes
  assert {text.get_text() for text in methods.get_yticklabels()} == {
    run['method'] for run in RUNS
  }
  assert {text.get_text() for text in problems.get_yticklabels()} == {
    run['problem'] for run in RUNS
  }


def test_a_result_file_that_is_missing_is_named_and_nothing_written(
  monkeypatch, capsys, tmp_path
):
  monkeypatch.setattr(sys, 'argv', ['readme.py'])
  for name in ('README', 'PICTURE', 'RESULTS'):
    monkeypatch.setattr(readme, name, tmp_path / name)
  assert readme.main() == 1
  assert 'RESULTS/comparison/comparison.csv; ' in capsys.readouterr().out
  assert not list(tmp_path.iterdir())


def _cosine(pair):
  return pair['cosine']['score'] / pair['constant']['score']


def test_what_the_pages_say_of_the_results_in_words():
  finals = [
    float(run['final'])
    for run in RUNS
    if run['problem'] == 'digits_mlp' and run['method'] == 'self_tuning'
  ]
  assert sum(final > 1e-3 for final in finals) < 0.1 * len(finals)
  assert max(finals) == pytest.approx(0.014, rel=0.05)
  told = {
    'constant', 'cosine', 'linear', 'prodigy_cosine', 'dadapt_adamw_cosine'
  }  # fmt: skip
  assert all(AGAINST[method] < 1 for method in AGAINST.keys() - told)
  pairs = COMPARISON['pairs']
  behind = [p['self_tuning']['median'] > _cosine(p) for p in pairs]
  assert sum(behind) > len(pairs) / 2
  means = [row['geometric_mean'] for row in COMPARISON['ranking']]
  best = COMPARISON['ranking'][means.index(min(means))]
  assert best['method'].startswith('linear')
  assert at_the_edge('breast_cancer') == (3, 3)
  assert at_the_edge('drifting_target') == (2, 3)


def test_each_training_config_reaches_the_numbers_in_its_header():
  comparisons = {'compare', 'compare_unseen'}
  names = {path.stem for path in (ROOT / 'configs').glob('*.py')} - comparisons
  assert {*results.CLAIMS} == {*CONFIGS} == names
  for name, claims in results.CLAIMS.items():
    header = (ROOT / f'configs/{name}.py').read_text().split('"""')[1]
    header = ' '.join(header.split())
    for claim, found in zip(claims, CONFIGS[name]['claims'], strict=True):
      assert claim.words in header, (name, claim.words)
      assert (found['key'], found['header']) == (claim.key, claim.words)
      assert found['reached'], (name, found)


def test_what_the_pages_say_of_held_out_sizes_in_words():
  assert all(round(fit['power_of_n']) == 1 for fit in FITS.values())
  for n in SIZE['sizes']:
    losses = [with_size(h, n, 'test_loss') for h in ('2', '4', '16')]
    for two, four, sixteen in zip(*losses, strict=True):
      assert four < two
      assert n < 200 or sixteen < four
  least = [min(with_size(h, 1600, 'test_loss')) for h in ('2', '16')]
  assert least[1] < 0.25 * least[0]


def test_eight_devices_keep_the_rules_of_their_benchmark():
  assert scaling.find_faults(SCALING) == []
  worse = [{**row, 'operations': 2 * row['operations']} for row in SCALING]
  worse[0] = SCALING[0]  # one device alone, plain
  assert len(scaling.find_faults(worse)) == 2


def test_bytes_that_neither_fall_nor_stay_are_a_fault():
  assert len(scaling.split_bytes(SCALING)) == 4
  for mesh, off in itertools.product(([4, 1], [1, 4]), (0.99, 1.01)):
    wrong = [
      {**row, 'bytes_moved': row['bytes_moved'] * off}
      if (row['way'], row['mesh']) == ('plain', mesh)
      else row
      for row in SCALING
    ]
    (fault,) = scaling.find_faults(wrong)
    assert 'plain, along' in fault


def test_the_table_of_scaling_is_of_its_figures():
  table = (RESULTS / 'scaling.md').read_text()
  of_jax = load('scaling.json')['jax']
  assert scaling.to_markdown(SCALING, of_jax) == table


def test_the_page_of_large_models_shows_its_tables():
  page = (ROOT / LARGE_MODELS).read_text()
  billion = json.loads(json.dumps(large_model.apply()))
  assert billion == LARGE['billion'], 'run benchmarks/large_model.py again'
  memory = large_model_report.memory_table(billion)
  time = large_model_report.time_table(billion, large_model.WINDOW)
  for table in (memory, time):
    assert '\n'.join(table) in page


def test_the_arithmetic_of_large_models_keeps_its_margins():
  rows = LARGE['rows']
  assert large_model.find_faults(rows) == []
  for key in large_model.MARGINS:
    wrong = {**rows[0]['compiled'], key: 1.2 * rows[0]['compiled'][key]}
    worse = [{**rows[0], 'compiled': wrong}, *rows[1:]]
    assert len(large_model.find_faults(worse)) == 1
