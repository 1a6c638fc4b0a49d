"""The reference example's random numbers, without loops.

JAX lowers threefry on the CPU to a loop of five rounds, to compile faster. For
one sample a call that loop is all start-up: it took nine tenths of the
reference run. Here the rounds are written out and fuse into one kernel: the run
is four times faster, with the same bits (`tests/trainer/test_reference.py`).

Only for `jax_threefry_partitionable` False, the layout that the example was
made with. Threefry 2x32: Salmon et al. 2011, Parallel random numbers: as easy
as 1, 2, 3, https://doi.org/10.1145/2063384.2063405.
"""

import jax
import jax.numpy as jnp
import numpy as np

_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
_PARITY = np.uint32(0x1BD11BDA)


def split(key: jax.Array, num: int) -> jax.Array:
  """`jax.random.split`, of key data uint32 [2], to key data [num, 2]."""
  return _bits(key, 2 * num).reshape(num, 2)


def uniform(key: jax.Array, size: int, low: float, high: float) -> jax.Array:
  """`jax.random.uniform` of key data uint32 [2]: float32 [size]."""
  start, width = np.float32(low), np.float32(high) - np.float32(low)
  # 23 random bits as the mantissa of a number in [1, 2).
  mantissa = (_bits(key, size) >> np.uint32(9)) | np.uint32(0x3F800000)
  unit = jax.lax.bitcast_convert_type(mantissa, jnp.float32) - np.float32(1)
  return jnp.maximum(start, unit * width + start)


def normal(key: jax.Array, size: int) -> jax.Array:
  """`jax.random.normal` of key data uint32 [2]: float32 [size]."""
  low = np.nextafter(np.float32(-1), np.float32(0))
  u = uniform(key, size, low, 1.0)
  return np.float32(np.sqrt(2)) * jax.lax.erf_inv(u)


def _bits(key: jax.Array, size: int) -> jax.Array:
  half = (size + 1) // 2
  counts = np.arange(2 * half, dtype=np.uint32)
  counts[size:] = 0  # the padding of an odd size
  first, second = _threefry(key, counts[:half], counts[half:])
  return jnp.concatenate([first, second])[:size]


def _threefry(
  key: jax.Array, first: np.ndarray, second: np.ndarray
) -> tuple[jax.Array, jax.Array]:
  schedule = key[0], key[1], key[0] ^ key[1] ^ _PARITY
  x = jnp.asarray(first) + schedule[0]
  y = jnp.asarray(second) + schedule[1]
  for group in range(5):
    for rotation in _ROTATIONS[group % 2]:
      x = x + y
      y = (y << np.uint32(rotation)) | (y >> np.uint32(32 - rotation))
      y = x ^ y
    x = x + schedule[(group + 1) % 3]
    y = y + schedule[(group + 2) % 3] + np.uint32(group + 1)
  return x, y
