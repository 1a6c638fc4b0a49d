# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Learning rates that learn
#
# A learning rate is usually a number that somebody guessed. Here it is learned
# while the model trains, by the derivative of a later loss in the rate:
#
# 1. on a straight line with one parameter, the example that this project grew
#    from;
# 2. on handwritten digits, with the same few functions;
# 3. in a training loop of your own, with one line: the drop-in.
#
# The whole page takes about a minute. It is a Python file: run it as a script,
# or open it as a notebook with `jupytext --to ipynb`.

# %%
import functools

from flax import nnx
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import optax

import metalr_flax
from metalr_flax import models
from metalr_flax import tasks

# The random numbers of the first part are those of the original example.
jax.config.update('jax_threefry_partitionable', False)

# %% [markdown]
# ## 1. A straight line
#
# The data are y = 10 x + noise, the model y = theta x. RMSProp moves theta at a
# learning rate sigmoid(eta). After every 6 updates, a *window*, the loss on a
# sample apart is differentiated through all six of them, and Adam moves eta
# against that derivative:
#
#     theta <- theta - RMSProp(sigmoid(eta))(dL/dtheta)      six times
#     eta   <- eta - Adam(dF/deta),  F = L of a seventh sample
#
# This is [optax's meta-learning
# example](https://optax.readthedocs.io/en/latest/_collections/examples/meta_learning.html).


# %%
def next_sample(key):
  key, x_key, noise_key = jax.random.split(key, 3)
  x = jax.random.uniform(x_key, minval=0.0, maxval=10.0)
  return key, (x, 10.0 * x + jax.random.normal(noise_key))


def line_loss(theta, model_state, sample):
  x, y = sample
  return optax.l2_loss(theta * x, y), (model_state, {})


FIRST_RATE = 0.1
line = metalr_flax.Problem(
  loss_fn=line_loss,
  meta_loss_fn=line_loss,
  next_batch=next_sample,
  next_meta_batch=next_sample,
  tx=metalr_flax.make_injected(
    'rmsprop', {'learning_rate': FIRST_RATE}, ['learning_rate']
  ),
  bijections={'learning_rate': 'sigmoid'},
  unroll_length=6,
)


def learn(problem, meta_tx, num_outer_steps, estimator, **first):
  """Many outer steps as one program; the state and a row of metrics of each."""
  state = metalr_flax.init_state(
    problem, meta_tx=meta_tx, estimator=estimator, **first
  )
  step = functools.partial(
    metalr_flax.outer_step,
    problem=problem,
    meta_tx=meta_tx,
    estimator=estimator,
  )
  run = jax.jit(
    lambda state: jax.lax.scan(
      lambda state, _: step(state), state, length=num_outer_steps
    )
  )
  return run(state)


key = jax.random.PRNGKey(0)
for _ in range(5):  # the example prints five samples first
  key, _ = next_sample(key)
line_state, line_metrics = learn(
  line,
  optax.adam(0.03),
  2000,
  metalr_flax.Estimator(kind='reverse'),
  params=jax.random.normal(jax.random.PRNGKey(42)),
  model_state={},
  data_state=key,
  hyperparams={'learning_rate': FIRST_RATE},
)
line_rates = line_metrics['hyperparams/learning_rate']
theta = line_state.params
print(f'theta {theta:.2f}, learned rate {line_rates[-1]:.4f}')

# %% [markdown]
# Is that rate any good? The same number of updates with RMSProp at fixed rates,
# on other samples, says how far off theta is in the end: too small a rate does
# not arrive in time, too large a rate keeps jumping about.


# %%
def distance_at(rate, num_updates=12000):
  """Root mean square distance of theta from 10, over the last quarter."""
  tx = optax.rmsprop(rate)

  def update(carry, _):
    theta, opt_state, key = carry
    key, sample = next_sample(key)
    grads = jax.grad(lambda theta: line_loss(theta, {}, sample)[0])(theta)
    updates, opt_state = tx.update(grads, opt_state)
    theta = optax.apply_updates(theta, updates)
    return (theta, opt_state, key), theta

  theta = jax.random.normal(jax.random.PRNGKey(42))
  first = theta, tx.init(theta), jax.random.PRNGKey(1)
  _, thetas = jax.lax.scan(update, first, length=num_updates)
  last = thetas[-num_updates // 4 :]
  return jnp.sqrt(jnp.mean((last - 10) ** 2))


fixed_rates = jnp.logspace(-4, 0, 17)
distances = jax.jit(jax.vmap(distance_at))(fixed_rates)
learned_rate = float(jnp.mean(line_rates[1500:]))

figure, (left, right) = plt.subplots(
  1, 2, figsize=(10, 4), layout='constrained'
)
left.plot(line_rates)
left.axhline(FIRST_RATE, color='gray', linestyle=':', label='where it starts')
left.set(
  title='The rate rises, then falls as theta arrives',
  xlabel='outer steps (of 6 updates)',
  ylabel='learning rate',
)
left.legend()
right.loglog(fixed_rates, distances, 'o-', label='fixed rates')
right.axvline(learned_rate, color='C1', label='learned, last 500 outer steps')
right.set(
  title='Is the learned rate a good one?',
  xlabel='learning rate of RMSProp',
  ylabel='distance of theta from 10',
)
right.legend(loc='lower left')
figure.savefig('line.png', dpi=100)
plt.show()

# %% [markdown]
# It is a safe one, not the best: it is still on its way down when the run ends.
# A fixed rate of 2e-3 ends nearer to 10, and one of half that size does not
# arrive at all; who did not know the answer would not have dared to take it.
#
# ## 2. Handwritten digits
#
# The same functions, with a network of 64-128-10 units on the 1797 digits of
# scikit-learn, windows of 8 updates, and the derivative in forward mode, whose
# memory does not grow with the window. The rate starts ten times too small.

# %%
digits = tasks.Digits(batch_size=64)
parts = metalr_flax.split(models.MLP(features=(64, 128, 10), rngs=nnx.Rngs(0)))
problem = metalr_flax.Problem(
  loss_fn=metalr_flax.make_loss_fn(parts.train, digits.loss),
  meta_loss_fn=metalr_flax.make_loss_fn(parts.meta, digits.loss),
  next_batch=digits.next,
  next_meta_batch=digits.next_meta,
  tx=metalr_flax.make_injected(
    'rmsprop', {'learning_rate': 1e-4}, ['learning_rate']
  ),
  bijections={'learning_rate': 'sigmoid'},
  unroll_length=8,
)
digits_state, digits_metrics = learn(
  problem,
  optax.adam(0.05),
  500,
  metalr_flax.Estimator(kind='forward'),
  params=parts.params,
  model_state=parts.model_state,
  data_state=digits.init(jax.random.PRNGKey(0)),
  hyperparams={'learning_rate': 1e-4},
)


def accuracy_of(params):
  """Share of the test images, which no update and no window saw."""
  model = parts.eval.merge(params, parts.model_state)
  logits = model(digits.test['image'])
  return jnp.mean(jnp.argmax(logits, axis=-1) == digits.test['label'])


digits_accuracy = float(accuracy_of(digits_state.params))
print(f'test accuracy {digits_accuracy:.1%}')

figure, (left, right) = plt.subplots(
  1, 2, figsize=(10, 4), layout='constrained'
)
left.semilogy(digits_metrics['hyperparams/learning_rate'])
left.set(
  title='From ten times too small, without a search',
  xlabel='outer steps (of 8 updates)',
  ylabel='learning rate',
)
right.semilogy(digits_metrics['train/loss'], label='training, mean of a window')
right.semilogy(
  digits_metrics['meta/loss'], label='held out, after it', alpha=0.7
)
right.set(
  title='Does the network generalise?',
  xlabel='outer steps (of 8 updates)',
  ylabel='cross-entropy (nats)',
)
right.legend()
figure.savefig('digits.png', dpi=100)
plt.show()

# %% [markdown]
# The held-out loss stops falling while the training loss goes on: the network
# fits its images, and the rate falls, as there is no more to gain.
#
# ## 3. Your own loop
#
# The drop-in needs no windows and no second pass: it is an optax
# transformation. Digits come again in every epoch, so it gets the gradient of a
# held-out batch at every fourth update, and learns the weight decay too.

# %%
loss_fn = metalr_flax.make_loss_fn(parts.train, digits.loss)
gradient = jax.grad(
  lambda params, batch: loss_fn(params, parts.model_state, batch)[0]
)
tx = metalr_flax.self_tuning(
  optax.inject_hyperparams(optax.adamw)(1e-3, weight_decay=1e-2),
  learned=['learning_rate', 'weight_decay'],
)


def train_step(carry, step):
  params, opt_state, data_state = carry
  data_state, batch = digits.next(data_state)
  data_state, held_out = digits.next_meta(data_state)
  grads = gradient(params, batch)
  meta_grads = jax.lax.cond(
    step % 4 == 0,
    lambda: gradient(params, held_out),
    lambda: jax.tree.map(lambda g: g * jnp.nan, grads),  # none this time
  )
  updates, opt_state = tx.update(
    grads, opt_state, params, meta_grads=meta_grads
  )
  params = optax.apply_updates(params, updates)
  row = metalr_flax.hyperparams_of(opt_state) | {
    'accuracy': accuracy_of(params)
  }
  return (params, opt_state, data_state), row


first = (
  parts.params,
  tx.init(parts.params),
  digits.init(jax.random.PRNGKey(0)),
)
_, rows = jax.jit(
  lambda carry: jax.lax.scan(train_step, carry, jnp.arange(1500))
)(first)
drop_in_accuracy = float(jnp.mean(rows['accuracy'][-100:]))
print(f'test accuracy {drop_in_accuracy:.1%}')

figure, (left, right) = plt.subplots(
  1, 2, figsize=(10, 4), layout='constrained'
)
left.semilogy(rows['learning_rate'], label='learning rate')
left.semilogy(rows['weight_decay'], label='weight decay')
left.set(
  title='What AdamW was given at each update',
  xlabel='updates',
  ylabel='value',
)
left.legend()
right.plot(100 * rows['accuracy'], label='drop-in (AdamW)')
right.axhline(
  100 * digits_accuracy, color='gray', linestyle=':', label='part 2, its end'
)
right.set(
  title='How many unseen digits are read?',
  xlabel='updates',
  ylabel='test accuracy (%)',
  ylim=(80, 100),
)
right.legend(loc='lower right')
figure.savefig('drop_in.png', dpi=100)
plt.show()
