"""Is the suite worth anything? Plants faults and looks whether tests see them.

  python tests/torture/mutants.py [number ...]

Each deliberate fault goes into a copy of the project, where the test meant for
it must fail; without any fault those tests must pass. Not a part of CI: it takes
half an hour on two cores.
"""

import concurrent.futures
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
from typing import NamedTuple

ROOT = pathlib.Path(__file__).parents[2]
T = 'tests/torture/'


class Mutant(NamedTuple):
  """A fault: in `file`, `old` becomes `new`, and `test` of `tier` must fail."""

  what: str
  file: str
  old: str
  new: str
  test: str
  tier: str = '--thorough'


MUTANTS = [
  Mutant('the data position is not restored', 'trainer/loop', 'state, record = found.state, found.record', 'state, record = found.state.replace(data_state=state.data_state), found.record', f'{T}test_kills.py::test_resume_at_every_step'),
  Mutant('the tangents are not restored', 'trainer/loop', 'state, record = found.state, found.record', 'state, record = found.state.replace(tangents=state.tangents), found.record', f'{T}test_kills.py::test_resume_at_every_step'),
  Mutant("the outer optimizer's state is not restored", 'trainer/loop', 'state, record = found.state, found.record', 'state, record = found.state.replace(meta_opt_state=state.meta_opt_state), found.record', f'{T}test_kills.py::test_resume_at_every_step'),
  Mutant('rows after the checkpoint are kept', 'workdir/files', '_retry(lambda: os.ftruncate(self._descriptor, size), path)', 'size = max(size, os.fstat(self._descriptor).st_size)', f'{T}test_kills.py::test_kills_at_file_operations'),
  Mutant('events after the checkpoint are kept', 'workdir/events', 'os.truncate(path, size)', 'pass', f'{T}test_kills.py::test_kills_at_file_operations'),
  Mutant('event files of a lost part are kept', 'workdir/events', 'path.unlink(missing_ok=True)', 'pass', f'{T}test_kills.py::test_kills_at_file_operations'),
  Mutant('the manifest is written before the data', 'workdir/manifest', '  names, directories = files_lib.walk(directory)\n  files', '  names, directories = files_lib.walk(directory)\n  (directory / NAME).write_bytes(b"{}")\n  files', f'{T}test_order.py'),
  Mutant("the manifest's fsync is skipped", 'workdir/manifest', '    os.fsync(file.fileno())\n', '', f'{T}test_order.py'),
  Mutant("the files' fsync is skipped", 'workdir/files', '    os.fsync(file.fileno())\n    while', '    while', f'{T}test_order.py'),
  Mutant("the new name's fsync is skipped", 'workdir/checkpoint', "  files.sync_directory(directory)\n  for step in _steps(directory)[MAX_TO_KEEP:]", "  for step in _steps(directory)[MAX_TO_KEEP:]", f'{T}test_order.py'),
  Mutant("the rows' fsync is skipped", 'workdir/files', '        os.fsync(self._descriptor)\n', '        pass\n', f'{T}test_order.py'),
  Mutant('a checkpoint gets its name before it is sealed', 'workdir/checkpoint', '    manifest.seal(saving, path.name, notes)\n', '    os.rename(saving, path)\n    manifest.seal(path, path.name, notes)\n    return\n', f'{T}test_order.py'),
  Mutant("the files' hashes are not compared", 'workdir/manifest', "if _hash(directory / name) != content['files'][name]:", 'if False:', f'{T}test_corruption.py::test_corruptions_of_ten_kinds'),
  Mutant("the manifest's own digest is not compared", 'workdir/manifest', '    if _encode(content) == raw:\n', '    if content:\n', f'{T}test_corruption.py::test_corruptions_of_ten_kinds'),
  Mutant('files that do not belong are not seen', 'workdir/manifest', "    if name not in content['files']:\n", "    if name not in content['files']:\n      continue\n    if name == '':\n", f'{T}test_corruption.py::test_corruptions_of_ten_kinds'),
  Mutant('there is no falling back', 'workdir/checkpoint', '  for step in steps:\n    path', '  for step in steps[:1]:\n    path', f'{T}test_corruption.py::test_corruptions_of_ten_kinds'),
  Mutant('damaged checkpoints are deleted', 'workdir/checkpoint', '      path.rename(aside)', '      shutil.rmtree(path)', f'{T}test_corruption.py::test_a_run_goes_on_from_the_step_before_and_loses_nothing'),
  Mutant('another structure is not refused', 'workdir/fingerprint', '    if before != now:', '    if False:', f'{T}test_corruption.py::test_another_structure_is_refused_by_name'),
  Mutant('the lock is not taken', 'workdir/folder', '  try:\n    try:\n      fcntl.flock', '  try:\n    return\n    try:\n      fcntl.flock', f'{T}test_storage.py::test_a_killed_runs_lock_does_not_block_and_readers_never_wait'),
  Mutant('a fault is not tried again', 'workdir/files', 'RETRY_SECS = (0.05, 0.5, 2.0)', 'RETRY_SECS = ()', f'{T}test_storage.py::test_injected_faults'),
  Mutant('a failed fsync is taken for done', 'workdir/files', '        self._written = 0  # the system may have dropped them: all anew\n', '', 'tests/workdir/test_append_file.py'),
  Mutant('only two checkpoints are kept', 'workdir/checkpoint', 'MAX_TO_KEEP = 3', 'MAX_TO_KEEP = 2', f'{T}test_corruption.py::test_corruptions_of_ten_kinds'),
  Mutant('a signal is not looked at', 'trainer/loop', '  return stopped, not stopped and all(', "  return '', all(", 'tests/trainer/test_resume.py::test_sigterm_saves_and_the_same_command_goes_on'),
  Mutant('the state is not saved at a signal', 'trainer/loop', '  save.last(state)\n  run.team', '  _ = stopped or save.last(state)\n  run.team', f'{T}test_kills.py::test_signals_in_every_phase'),
  Mutant('a changed config is not refused', 'workdir/folder', '  if differences:', '  if False:', f'{T}test_storage.py::test_a_changed_config_is_refused'),
  Mutant('what is not finite does not end the run', 'engine/outer', '    return (chunk.count < num_steps) & chunk.finite', '    return chunk.count < num_steps', f'{T}test_divergence.py::test_injected_values_end_the_run_at_their_step'),
  Mutant('infinity is clipped into sight', 'engine/bijections', '  return jnp.where(jnp.isfinite(value), jnp.clip(value, low, high), value)', '  return jnp.clip(value, low, high)', f'{T}test_divergence.py::test_injected_values_end_the_run_at_their_step'),
  Mutant('the state is not looked at for what is not finite', 'engine/outer', '  for field in dataclasses.fields(new):', '  for field in ():', f'{T}test_divergence.py::test_injected_values_end_the_run_at_their_step'),
  Mutant('a step that is not finite is not rejected', 'engine/outer', '    state = jax.tree.map(functools.partial(jnp.where, finite), new_state, state)', '    state = new_state', f'{T}test_divergence.py::test_injected_values_end_the_run_at_their_step'),
  Mutant('an infinite gradient hides behind its sign', 'engine/inner', '  loss = jnp.where(all_finite(grads), loss, jnp.nan)\n', '', f'{T}test_divergence.py::test_a_gradient_that_its_optimizer_hides_is_seen'),
  Mutant('a resumed stream begins anew', 'trainer/feeder', 'self._streams.seek(saved[self._team.index])', 'pass', 'tests/trainer/test_streams.py::test_resumed_in_an_epoch_it_is_the_same_run'),
  Mutant('a stream is saved where it was read ahead to', 'trainer/feeder', 'known = max(s for s in [*self._positions] if s <= step)', 'known = step = max(self._positions)', 'tests/trainer/test_streams.py::test_resumed_in_an_epoch_it_is_the_same_run'),
  Mutant('a place within a chunk is taken for its start', 'trainer/streams', "+ steps * n}", "}", 'tests/trainer/test_streams.py::test_a_run_that_diverges_keeps_its_place_in_the_stream'),
  Mutant('a step that was rejected is tried on later batches', 'trainer/launch', 'jnp.where(state.step == feed.step, num_steps, 0)', 'num_steps', 'tests/trainer/test_streams.py::test_a_run_that_diverges_keeps_its_place_in_the_stream'),
  Mutant('a task of one batch is trained', 'trainer/purity', 'if not _same(one, other):', 'if False:', 'tests/trainer/test_purity.py::test_a_run_is_refused_before_anything_is_written'),
  Mutant('the last good state is not saved', 'trainer/loop', "str(save.last(state))", "str(int(state.step))", f'{T}test_divergence.py::test_a_diverged_run_names_the_step_eta_and_the_last_good_checkpoint'),
  Mutant("the rows' digest is not compared", 'workdir/metrics_csv', " or record.get('metrics_sha256', sha256) != sha256", '', 'tests/trainer/test_resume.py::test_damaged_rows_are_seen_and_nothing_is_changed'),
  Mutant('a reader takes what was removed for damaged', 'workdir/checkpoint', '      raise _GoneError from error', '      pass', f'{T}test_corruption.py::test_what_a_run_removes_meanwhile_is_not_damaged'),
  Mutant('a replaced workdir is written to', 'workdir/folder', '    if not _leads_to(self._path, self._directory):', '    if False:', f'{T}test_storage.py::test_a_workdir_replaced_by_another_run_is_left_alone'),
  Mutant('a clock set back puts events before older ones', 'workdir/events', '    number = max(int(now), 1 + _last_number(pathlib.Path(logdir)))', '    number = int(now)', 'tests/trainer/test_resume.py::test_a_clock_set_back_leaves_tensorboard_in_order'),
  Mutant('a signal sent twice kills', 'interrupts', '_SAME_SECS = 0.3', '_SAME_SECS = 0.0', f'{T}test_kills.py::test_a_signal_delivered_twice_is_one'),
  Mutant('Orbax takes a path for a pattern', 'workdir/arrays', '  def glob(self', '  def never(self', 'tests/workdir/test_checkpoint_paths.py'),
  Mutant('a link before .. is not followed', 'workdir/arrays', '  real = os.path.realpath(path)\n', '  real = os.path.abspath(path)\n', 'tests/workdir/test_checkpoint_paths.py'),
  Mutant('a checkpoint is sealed unread', 'workdir/checkpoint', '    arrays.check_complete(saving, stored)\n', '', f'{T}test_readback.py::test_a_file_lost_between_writing_and_sealing'),
  Mutant('a value without its file is taken for read', 'workdir/arrays', '    if store.read(key).result().value:', '    if True:', f'{T}test_readback.py'),
  Mutant('no checkpoint is compared', 'workdir/saving', 'self._count % _COMPARE_EVERY == 0', 'False', f'{T}test_readback.py::test_other_arrays_than_were_saved'),
  Mutant('a warning of Orbax is not looked at', 'workdir/arrays', '  if warnings.found:', '  if False:', f'{T}test_readback.py::test_a_warning_of_orbax_is_an_error'),
  Mutant('names that TensorStore changes are accepted', 'workdir/folder', '    _check_name(path)\n', '', 'tests/workdir/test_checkpoint_paths.py'),
  Mutant("an error's own words are lost", 'workdir/files', 'if error.filename is None and error.errno is not None:', 'if error.filename is None:', 'tests/workdir/test_append_file.py'),
  Mutant('a manifest may lack its fields', 'workdir/checkpoint', '  manifest.check_fields(notes, _NOTES)\n', '', 'tests/workdir/test_loading.py'),
  Mutant('steps of a schedule may come in any order', 'workdir/schedule', 'or steps != sorted({*steps})', '', 'tests/workdir/test_loading.py'),
  Mutant('SIGHUP kills', 'interrupts', 'if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:', 'if False:', f'{T}test_kills.py::test_a_hangup_asks_to_stop_but_not_under_nohup'),
  Mutant('nohup is not heeded', 'interrupts', 'if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:', 'if True:', f'{T}test_kills.py::test_a_hangup_asks_to_stop_but_not_under_nohup'),
  Mutant('a second SIGHUP kills', 'interrupts', 'number != signal.SIGHUP and ', '', f'{T}test_kills.py::test_a_hangup_asks_to_stop_but_not_under_nohup'),
  Mutant('what nobody read makes the status 120', 'errors', '    drop_broken_streams()\n', '    pass\n', f'{T}test_kills.py::test_nobody_reads_what_is_printed'),
  Mutant("sys.exit in the user's code ends the run as done", 'errors', '  except (SystemExit, GeneratorExit) as error:', '  except ZeroDivisionError as error:', 'tests/trainer/test_users_code.py::test_code_that_ends_the_program_is_an_error'),
  Mutant('MPLBACKEND decides whether there is a run', 'workdir/drawing', "os.environ.pop('MPLBACKEND', None)", "os.environ.get('MPLBACKEND')", 'tests/comparison/test_compare.py::test_pictures_do_not_depend_on_the_backend_that_jupyter_names'),
  Mutant('self_tuning is compared without held-out gradients', 'comparison/contestants', 'place == 0', 'place < 0', 'tests/comparison/test_unseen.py::test_self_tuning_is_given_held_out_gradients'),
  Mutant('a setting is picked by its test loss', 'comparison/outcomes', 'if self.held_out is None:', 'if True:', 'tests/comparison/test_unseen.py::test_a_grid_is_picked_by_held_out_loss_and_reported_by_test_loss'),
  Mutant('a run is stopped by its test loss', 'comparison/race', 'at = np.argmin(held_out, axis=0)', 'at = np.argmin(test, axis=0)', 'tests/comparison/test_unseen.py::test_a_run_is_stopped_before_it_diverges'),
  Mutant('a state of another estimator is taken', 'engine/meta_gradient', '  agreement.check_tangents(z, shapes)\n', '', 'tests/engine/test_wrong_calls.py'),
  Mutant('tangents are forgotten without a word', 'engine/meta_gradient', '      agreement.check_tangents(carry.tangents, {})\n', '      pass\n', 'tests/engine/test_wrong_calls.py'),
  Mutant('what moves nothing is learned', 'engine/meta_gradient', '    return [name for name in eta if name not in names]', '    return []', 'tests/engine/test_wrong_calls.py'),
  Mutant('what moves a parameter after the window is learned', 'engine/meta_gradient', '    moved = reach[last if self.keeps_tangents else min(within, last)]', '    moved = reach[last]', 'tests/engine/test_wrong_calls.py'),
  Mutant('permuted labels are taken', 'engine/agreement', '  if misplaced:', '  if False:', 'tests/engine/test_wrong_calls.py'),
  Mutant("groups' updates are taken for independent", 'engine/agreement', '    if len(found) > 1 and not mixed:', '    if False:', 'tests/engine/test_wrong_calls.py'),
  Mutant("labels need not be the values' groups", 'engine/agreement', '  if given == labels:', '  if True:', 'tests/engine/test_wrong_calls.py'),
  Mutant('a hyperparameter need not be injected', 'engine/optimizers', '    if not holders:', '    if False:', 'tests/engine/test_wrong_calls.py'),
  Mutant('a schedule is taken for a number', 'engine/optimizers', "    if any(name in scheduled(node) for _, node in holders):", '    if False:', 'tests/engine/test_wrong_calls.py'),
  Mutant('two stages share a hyperparameter', 'engine/optimizers', '  if len({*holders}) < len(holders):', '  if False:', 'tests/engine/test_wrong_calls.py'),
  Mutant('a loss of any shape is taken', 'engine/losses', '    if fault:', '    if False:', 'tests/engine/test_wrong_calls.py'),
  Mutant('a loss of other parameters is taken', 'engine/losses', '  if not jaxprs.depends_on_first(', '  if False and not jaxprs.depends_on_first(', 'tests/engine/test_wrong_calls.py'),
  Mutant('reverse mode takes a discount', 'engine/meta_gradient', "    if self.kind == 'reverse' and self.discount:", '    if False:', 'tests/engine/test_wrong_calls.py'),
  Mutant('more steps are taken than there are rows', 'engine/outer', '  check_counts(num_steps, max_steps)\n', '', 'tests/engine/test_wrong_calls.py'),
  Mutant('JAX is imported before the config is checked', 'config/check', 'import difflib', 'import jax  # noqa\nimport difflib', f'{T}test_invalid.py'),
  Mutant("labels that are not the optimizer's are taken", 'tuning/fit', '  if misplaced:', '  if False:', 'tests/tuning/test_tuning.py::test_labels_other_than_the_optimizers_are_refused'),
  Mutant('a group that no label names is passed over', 'tuning/fit', '    if stage.group is None:', '    if False:', 'tests/tuning/test_tuning.py::test_labels_other_than_the_optimizers_are_refused'),
  Mutant('two stages share one rate', 'tuning/fit', '  if len(stages) > 1:', '  if False:', 'tests/tuning/test_tuning.py::test_two_stages_do_not_share_one_rate'),
  Mutant('a hyperparameter that moves nothing is learned', 'tuning/fit', '    if not ours:', '    if False:', 'tests/tuning/test_tuning.py::test_mistakes_are_named'),
  Mutant('a mask is taken for a schedule', 'tuning/fit', "if not hasattr(value, 'dtype') or value.dtype == bool:", 'if False:', 'tests/tuning/test_tuning.py::test_mistakes_are_named'),
  Mutant('what comes after the drop-in in a chain is not seen', 'tuning/neighbours', 'chain[place + 1 :]', 'chain[place + 2 :]', 'tests/tuning/test_neighbours.py'),
  Mutant('clipping before the drop-in is warned of', 'tuning/neighbours', 'any(jax.numpy.ndim(leaf) for leaf in jax.tree.leaves(state))', 'True', 'tests/tuning/test_neighbours.py'),
  Mutant('MultiSteps within the drop-in is taken', 'tuning/tuner', '      fit.check_updates_at_every_step(opt_state)\n', '', 'tests/tuning/test_neighbours.py'),
  Mutant('a sign passes a derivative on', 'engine/jaxprs', '    return jax.jvp(of_floats, pick(leaves), pick(dots))[1]', '    return of_floats(*pick(dots))', 'tests/tuning/test_tuning.py::test_mistakes_are_named'),
  Mutant('what a call does not use is taken for used', 'engine/jaxprs', '  if name in _TRANSPARENT:', '  if False:', 'tests/engine/test_jaxprs.py'),
  Mutant('a loop is taken for its first round', 'engine/jaxprs', '    if after == carry:', '    if True:', 'tests/engine/test_jaxprs.py'),
  Mutant("a slope's square leaves float32", 'tuning/steering', 'jnp.hypot(jnp.sqrt(old) * average.rms, jnp.sqrt(1 - old) * slopes)', 'jnp.sqrt(old * average.rms**2 + (1 - old) * slopes**2)', 'tests/tuning/test_tuning.py::test_the_rule_does_not_depend_on_the_losss_scale'),
  Mutant('complex gradients are not conjugated', 'tuning/online', 'slope = jax.tree.map(jnp.conj, grads)', 'slope = grads', 'tests/tuning/test_tuning.py::test_the_slope_equals_finite_differences'),
  Mutant("the loss is taken at lookahead's slow parameters, too", 'tuning/online', 'fast=slope, slow=jax.tree.map(jnp.zeros_like, params.slow)', 'fast=slope, slow=slope', 'tests/tuning/test_tuning.py::test_the_slope_equals_finite_differences'),
  Mutant('Python numbers are no parameters', 'tuning/tuner', '    grads, params = optimizers.as_arrays((updates, params))\n', '    grads = updates\n', 'tests/tuning/test_tuning.py::test_parameters_are_taken_as_plain_optax_takes_them'),
  Mutant('a decay rate alone in a list is learned by its logarithm', 'tuning/factors', 'KINDS[name in DECAY_RATES]', 'KINDS[0]', 'tests/tuning/test_tuning.py::test_names_alone_are_learned_by_the_kind_that_suits_them'),
  Mutant('what is not finite is trained on', 'tuning/guard', '    skip=~finite | (high', '    skip=(high', 'tests/tuning/test_guard.py'),
  Mutant('one high batch is taken for an explosion', 'tuning/guard', '    back=(high & guard.suspect) | unfit,', '    back=high | unfit,', 'tests/tuning/test_guard.py'),
  Mutant('a lowered rate does not come back', 'tuning/steering', 'jnp.minimum(moves, 0) - brake, moves + paid)', 'jnp.minimum(moves, 0) - brake, moves)', 'tests/tuning/test_tuning.py::test_a_rate_that_was_lowered_comes_back'),
  Mutant('a decay rate may remember more than was seen', 'tuning/factors', 'jnp.maximum(1 / (MEMORY_SHARE * age + 1), LEAST)', 'jnp.maximum(0 * age, LEAST)', 'tests/tuning/test_learned_decay_rates.py'),
  Mutant('the brake leaves the other hyperparameters alone', 'tuning/steering', '    regularizes, moves, OTHERS_SHARE * moves - jnp.max(brake) * eta\n', '    regularizes, moves, OTHERS_SHARE * moves\n', 'tests/tuning/test_steering.py'),
  Mutant('a skipped update changes the state', 'tuning/select', 'jnp.where(condition, leaves[place].astype(value.dtype), value)', 'value', 'tests/tuning/test_tuning.py::test_a_batch_that_is_not_finite_costs_nothing'),
  Mutant('a later signal does not stop', 'interrupts', '_SAME_SECS = 0.3', '_SAME_SECS = 30.0', f'{T}test_kills.py::test_a_signal_delivered_twice_is_one'),
  Mutant('the rest of a save makes a workdir foreign', 'workdir/folder', '  if name in (STATE, BEST):', '  if False:', 'tests/test_main_errors.py::test_empty_and_interrupted_workdirs_are_fine'),
  Mutant('the training gradient goes on to move eta', 'tuning/held_out', 'return Outer(grads, ~held_out, held_out', 'return Outer(grads, ~(held_out & False), held_out', 'tests/tuning/test_held_out.py::test_without_one_eta_rests'),
  Mutant('the held-out gradient is not looked at', 'tuning/held_out', 'followed = select.where(after, matched, grads)', 'followed = grads', 'tests/tuning/test_held_out.py::test_the_slopes_equal_finite_differences'),
  Mutant('a slope counts once however long it was waited for', 'tuning/steering', 'pace * elapsed, MAX_JUMP', 'pace, MAX_JUMP', 'tests/tuning/test_held_out.py::test_a_slope_counts_for_the_updates_without_one'),
  Mutant('the rate falls while the weight decay grows', 'tuning/steering', '(1 - grows) * moves', 'moves', 'tests/tuning/test_held_out.py::test_a_rate_does_not_fall_while_the_weight_decay_grows'),
  Mutant('a weight decay starts where the user set it', 'tuning/outer_optimizer', '    eta = factors.begin_decay(state.eta, state.base, self.learned)\n', '    eta = state.eta\n', 'tests/tuning/test_held_out.py::test_a_weight_decay_starts_where_all_do_and_stays_above'),
  Mutant('a held-out gradient that is not finite counts', 'tuning/held_out', 'return Outer(followed, usable | ~held_out,', 'return Outer(followed, jnp.ones_like(usable),', 'tests/tuning/test_held_out.py::test_one_that_is_not_finite_counts_as_none'),
  Mutant("the loss's hyperparameters are constants", 'engine/inner', '    inner.params, inner.model_state, batch, **of_loss\n', '    inner.params, inner.model_state, batch, **jax.lax.stop_gradient(of_loss)\n', 'tests/engine/test_loss_hyperparams.py::test_closed_form_of_one_update'),
  Mutant('groups share one tangent beside a hyperparameter of the loss', 'engine/meta_gradient', "return self.curvature != 'none' or bool(problem.loss_hyperparams)", "return self.curvature != 'none'", 'tests/engine/test_loss_hyperparams.py::test_slopes_equal_finite_differences'),
  Mutant('the training loss may be lowered by its own hyperparameters', 'engine/agreement', '  if online and problem.loss_hyperparams:', '  if False:', 'tests/engine/test_loss_hyperparams.py::test_what_cannot_be_learned_is_refused'),
  Mutant('the fixed arguments of the loss are dropped', 'trainer/build', 'functools.partial(task.loss, **fixed)', 'task.loss', 'tests/trainer/test_regularized_runs.py::test_evaluation_and_outer_loss_are_without_them'),
  Mutant('the rule starts where the user set it', 'trainer/build', "  if meta['optimizer'] == rules.STEERING and meta['estimator'] != 'none':\n", '  if False:\n', 'tests/trainer/test_regularized_runs.py::test_all_of_them_are_learned_and_resumed'),
  Mutant("the rule's clock counts windows of training batches", 'tuning/steered', '      rule if held_out else _after(rule, unroll_length - 1),\n', '      rule,\n', 'tests/trainer/test_steered_runs.py::test_as_much_is_kept_from_window_to_window'),
  Mutant('tangents that the rule follows never fade', 'tuning/steered', 'scale = jnp.minimum(most / discount, 1)', 'scale = jnp.ones_like(most)', 'tests/trainer/test_steered_runs.py::test_as_much_is_kept_from_window_to_window'),
  Mutant('a window in which training explodes is kept', 'tuning/rejection', 'rejected = _is_high(watch, loss) & begun', 'rejected = earlier & begun', 'tests/trainer/test_rejection.py::test_a_rate_that_explodes_falls_and_the_model_is_kept'),
  Mutant('the rate stays after windows rejected', 'tuning/rejection', 'falls = rejected & ((watch', 'falls = ~rejected & ((watch', 'tests/trainer/test_rejection.py::test_it_ends_as_well_as_without_the_explosion'),
  Mutant('a run of windows that are not finite never ends', 'tuning/rejection', '& (watch.streak < guard.PATIENCE)', '', 'tests/trainer/test_rejection.py::test_a_run_of_bad_windows_ends'),
  Mutant('a first batch alone rejects a window', 'tuning/rejection', 'rejected = _is_high(watch, loss) & begun', 'rejected = (earlier | _is_high(watch, loss)) & begun', 'tests/trainer/test_rejection.py::test_stationary_noise_lowers_no_rate'),
  Mutant('a rate comes back a window at a time', 'tuning/steered', 'updates=1 if held_out else unroll_length', 'updates=1', 'tests/tuning/test_steered.py::test_what_an_explosion_took_comes_back_in_as_many_updates'),
  Mutant('a run from before an optional field is refused', 'workdir/folder', '    schema.complete(config)  # of a run from before such a field was there\n', '', 'tests/trainer/test_regularized_runs.py::test_a_run_from_before_the_field_goes_on'),
  Mutant('class weights are for the wrong class', 'tasks/classification', 'jnp.where(labels == int(name), weight, weights)', 'jnp.where(labels != int(name), weight, weights)', 'tests/trainer/test_regularized_runs.py::test_what_is_found_is_the_known_answer'),
  Mutant("dropout's noise has the variance of its rate", 'models/dropout', 'jnp.sqrt(rate / (1 - rate))', 'jnp.sqrt(rate)', 'tests/trainer/test_regularized_runs.py::test_the_known_rate_of_dropout_is_that_of_dropout'),
  Mutant('a weight decay may take more than all of a weight', 'tuning/factors', '    return jnp.minimum(e, most).astype(e.dtype)', '    return e', 'tests/tuning/test_held_out.py::test_an_update_takes_no_more_than_all_of_a_weight'),
  Mutant('the brake works without the held-out loss', 'tuning/steering', 'jnp.where(_trend(outer_quick) > UPHILL, brake, 0)', 'brake', 'tests/tuning/test_held_out.py::test_a_brake_works_where_the_last_updates_are_uphill_in_held_out_data'),
  Mutant("the guard's mark never falls", 'tuning/guard', '  return levels._replace(mark=jnp.where(falls, mark, levels.mark))', '  return levels', 'tests/tuning/test_held_out.py::test_an_explosion_of_what_has_memorised_its_data_is_undone'),
  Mutant('an average has the statistics of the newest weights', 'engine/averaging', '    return jnp.where(jnp.isfinite(mixed), mixed, z)', '    return jnp.where(z.ndim == 1, z, mixed)', 'tests/engine/test_averaging.py::test_the_models_other_variables_are_averaged_too'),
  Mutant('load gives the learned rate without its multiplier', 'trainer/loading', '  return _product(learned, multiplier)', '  return learned', 'tests/trainer/test_schedules.py::test_the_rate_that_load_gives_repeats_the_run'),
  Mutant('a gradient is clipped after the optimizer', 'engine/optimizers', 'parts.insert(0, optax.clip_by_global_norm(clip_norm))', 'parts.append(optax.clip_by_global_norm(clip_norm))', 'tests/trainer/test_schedules.py::test_the_rate_that_load_gives_repeats_the_run'),
  Mutant('a batch in parts has the loss of its first part', 'engine/microbatches', 'jnp.mean(values, 0)', 'values[0]', 'tests/engine/test_microbatches.py::test_loss_gradient_state_and_metrics[8]'),
  Mutant('positions are computed in bfloat16', 'models/transformer', '  dtype = jnp.promote_types(x.dtype, jnp.float32)', '  dtype = x.dtype', 'tests/models/test_precision.py::test_positions_are_told_apart_beyond_256'),
  Mutant('the outer loss has the fixed arguments of the training loss', 'trainer/build', 'functional.make_loss_fn(split.meta, task.loss),', 'functional.make_loss_fn(\n        split.meta, functools.partial(task.loss, **fixed)\n      ),', 'tests/trainer/test_regularized_runs.py::test_the_outer_loss_is_without_what_is_fixed'),
  Mutant('a held-out weight decay moves as any other in the trainer', 'trainer/build_optimizers', "held_out = section['objective'] == 'held_out'", 'held_out = False', 'tests/trainer/test_regularized_runs.py::test_a_weight_decay_follows_held_out_batches_at_the_whole_pace'),
  Mutant('NaN before the first held-out gradient stops eta', 'tuning/held_out', 'return Outer(followed, usable | ~held_out,', 'return Outer(followed, usable,', 'tests/tuning/test_held_out.py::test_none_that_was_ever_finite_is_as_none_given'),
  Mutant("the loss's mark falls, too", 'tuning/guard', 'jnp.array([False, False, True])', 'jnp.array([False, True, True])', 'tests/tuning/test_guard.py::test_where_updates_go_uphill_a_loss_that_was_below_0_raises_no_alarm'),
  Mutant('gradients that grow on the way out of a saddle are undone', 'tuning/guard', 'jnp.stack([True, True, jnp.asarray(rising)])', 'jnp.stack([True, True, jnp.asarray(True)])', 'tests/tuning/test_guard.py::test_a_rise_above_the_second_mark_counts_where_updates_go_uphill'),
  Mutant('a rate may go back to where it exploded', 'tuning/steering', 'jnp.minimum(moves, jnp.maximum(below, -FALL))', 'moves', 'tests/tuning/test_steering.py::test_a_rate_that_exploded_is_a_ceiling'),
  Mutant('small downhill cosines boost by themselves', 'tuning/steering', '(trend < -GAINS) | (level < -ALONG)', 'jnp.asarray(True)', 'tests/tuning/test_steering.py::test_a_boost_needs_the_long_slope_or_a_cosine_near_minus_one'),
  Mutant('the brake takes chance for an overshoot', 'tuning/steering', 'jnp.where(alert > UPHILL, over, 0)', 'over', 'tests/tuning/test_steering.py::test_the_brake_goes_by_the_size_of_the_cosine'),
  Mutant('the start takes nothing back', 'tuning/steering', 'jnp.maximum(room, -steering.grown)', 'jnp.maximum(room, 0)', 'tests/tuning/test_steering.py::test_the_start_takes_back_what_it_added'),
  Mutant('an extended run is refused its length by its first command', 'trainer/loop', '  run = _with_length(run)\n', '', 'tests/trainer/test_resume.py::test_an_extended_run_goes_on_by_its_first_command'),
  Mutant('only the first difference is told', 'workdir/folder', '*differences[:_MOST_DIFFERENCES], *rest', '*differences[:1]', 'tests/test_main_errors.py::test_all_differences_are_told_at_once'),
  Mutant('the cursor is hidden', 'terminal', '    del show\n    return False', '    return super().show_cursor(show)', 'tests/test_terminal.py::test_what_is_printed_and_logged_comes_above_the_line'),
  Mutant('the log is written across the line', 'console', "  flags.FLAGS['logtostderr'].value = True", "  flags.FLAGS['logtostderr'].value = False", 'tests/test_terminal.py::test_what_is_printed_and_logged_comes_above_the_line'),
  Mutant('processes of two configs train together', 'processes/agreement', '      if here != there:', '      if False:', f'{T}test_processes.py::test_different_configs'),
  Mutant('a signal at one process is not told to the others', 'trainer/loop', 'said = run.team.gather([asked, bool(taken)])', 'said = [[asked, bool(taken)]]', f'{T}test_processes.py::test_a_signal_at_one_process_stops_all'),
  Mutant('what one process raises the others do not', 'processes/team', '      if failure:\n        raise _error([failure[0]', '      if False:\n        raise _error([failure[0]', 'tests/processes/test_team.py'),
  Mutant('a value may leave its folder', 'config/naming', "re.sub(r'[^\\w.+-]+', '-', str(value))", 'str(value)', 'tests/config/test_naming.py::test_fields_are_filled_in'),
  Mutant('batches are not split over the devices', 'engine/sharding', '    return jax.lax.with_sharding_constraint(batches, shardings)\n', '    return batches if shardings else batches\n', 'tests/test_benchmarks.py::test_compiled_programs_keep_the_rules'),
  Mutant('layers are split where params should be gathered', 'engine/sharding', '      return loss_fn(whole, *args, **given)', '      return loss_fn(params if whole else whole, *args, **given)', 'tests/test_benchmarks.py::test_compiled_programs_keep_the_rules'),
  Mutant("all members have the first one's settings", 'engine/population', '  return lambda state: jax.vmap(step_fn)(state, settings)', '  first = jax.tree.map(lambda a: jax.numpy.broadcast_to(a[:1], a.shape), settings)\n  return lambda state: jax.vmap(step_fn)(state, first)', 'tests/trainer/test_population.py'),
  Mutant('a member that diverged goes on', 'engine/population', '    kept = going & finite\n', '    kept = going\n', 'tests/engine/test_members.py'),
  Mutant('a lost process is taken for a storage error', 'processes/membership', '    if isinstance(error, errors.MetalrError) and not in_a_save:', '    if isinstance(error, errors.MetalrError):', f'{T}test_processes.py::test_one_that_dies_in_a_save_is_said_to_be_gone', '--full'),
]  # fmt: skip


def copy(folder: pathlib.Path) -> pathlib.Path:
  """A copy of what git tracks, for one fault."""
  path = pathlib.Path(tempfile.mkdtemp(dir=folder))
  names = subprocess.run(
    ['git', 'ls-files', '-z'], cwd=ROOT, capture_output=True, check=True
  ).stdout.decode()
  for name in filter(None, names.split('\0')):
    target = path / name
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy2(ROOT / name, target)
  return path


def run(
  path: pathlib.Path, tier: str, *tests: str
) -> subprocess.CompletedProcess:
  """Runs tests of a copy, which imports itself and not this project."""
  pytest = [sys.executable, '-m', 'pytest', tier, '-x']
  return subprocess.run(
    [*pytest, '-p', 'no:cacheprovider', *tests],
    cwd=path,
    env={**os.environ, 'PYTHONPATH': str(path)},
    capture_output=True,
    text=True,
    check=False,
  )


def try_out(folder: pathlib.Path, mutant: Mutant) -> str:
  """'caught', or what went otherwise."""
  path = copy(folder)
  file = path / 'metalr_flax' / f'{mutant.file}.py'
  source = file.read_text()
  if source.count(mutant.old) != 1:
    return f'NOT PLANTED: {source.count(mutant.old)} places for it'
  file.write_text(source.replace(mutant.old, mutant.new))
  process = run(path, mutant.tier, mutant.test)
  shutil.rmtree(path)
  if process.returncode == 0:
    return 'NOT CAUGHT'
  if process.returncode != 1 or 'error' in process.stdout.splitlines()[-1]:
    return f'NO TEST RESULT: {process.stdout[-500:]}{process.stderr[-500:]}'
  return 'caught'


def main() -> int:
  """Tries all of them, two at a time; 0 where all are caught."""
  chosen = [MUTANTS[int(a) - 1] for a in sys.argv[1:]] or MUTANTS
  missed = 0
  with (
    tempfile.TemporaryDirectory() as folder,
    concurrent.futures.ThreadPoolExecutor(2) as pool,
  ):
    path = pathlib.Path(folder)
    results = pool.map(lambda m: try_out(path, m), chosen)
    for number, (mutant, result) in enumerate(
      zip(chosen, results, strict=True), 1
    ):
      print(f'{number:2d} {mutant.what}: {result}', flush=True)
      missed += result != 'caught'
    print('without any fault: ', end='', flush=True)
    clean = [
      run(copy(path), tier, *sorted({m.test for m in chosen if m.tier == tier}))
      for tier in sorted({m.tier for m in chosen})
    ]
    faults = [each.stdout[-2000:] for each in clean if each.returncode]
    print('\n'.join(faults) or 'passes')
  print(f'{len(chosen) - missed} of {len(chosen)} caught')
  return int(missed > 0 or bool(faults))


if __name__ == '__main__':
  sys.exit(main())
