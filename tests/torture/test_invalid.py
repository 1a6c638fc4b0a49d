"""Wrong command lines as real processes; the tables are those of test_config.

In-process, all of the tables and the fuzzing: tests/config/test_config.py, which
does 2,000 examples of each kind with --full.
"""

import test_config
import test_main_errors

import metalr_flax.errors

without_jax = test_main_errors.without_jax


def test_wrong_lines_as_processes(share, tmp_path, without_jax):
  lines = [
    argv
    for argv, *_ in test_config.WRONG_LINES.values()
    # The system itself refuses a NUL or 5000 letters to a process.
    if not any('\0' in a or len(a) > 1000 for a in argv)
  ]
  count = share(30)
  for i in range(count):
    argv = lines[i * len(lines) // count]
    given = [] if any(a.startswith('--config=') for a in argv) else [
      test_main_errors.DEFAULT
    ]  # fmt: skip
    process = test_main_errors.run(
      [*given, '--workdir=run', *argv], tmp_path, without_jax
    )
    assert process.returncode != test_main_errors.NO_JAX, argv
    test_main_errors.assert_refused(
      process, metalr_flax.errors.ConfigError.status, []
    )
    assert test_main_errors.snapshot(tmp_path) == {}, argv


def test_the_tables_are_as_long_as_promised():
  tables = (
    test_config.WRONG_CONFIGS,
    test_config.WRONG_LINES,
    test_config.WRONG_FILES,
    test_config.WRONG_SOURCES,
  )
  assert sum(map(len, tables)) >= 150
