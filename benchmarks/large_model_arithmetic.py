"""What training a transformer takes of each device, as plain arithmetic.

Every function is a closed form of the model's sizes, the mesh and the batch;
nothing is compiled here. `large_model.py` holds them to compiled programs, and
applies them to a model of 1B parameters.

Params, gradients, momenta and tangents are float32; the model computes in
bfloat16, and each block's backward pass computes the block again from its input
(`remat='full'`). The inner optimizer is AdamW and one hyperparameter, its
rate, is learned. Shape legend: V vocab_size, D d_model, L num_layers,
H num_heads, T tokens of a sequence.
"""

import dataclasses

FLOAT = 4  # bytes
SMALLEST_SPLIT = 4096  # elements; `metalr_flax/engine/sharding.py`'s MIN_SIZE


@dataclasses.dataclass(frozen=True, kw_only=True)
class Model:
  """The sizes of a transformer.

  Attributes:
    vocab_size: V; one matrix embeds the tokens and reads them out.
    d_model: D; the perceptrons are 4 D wide.
    num_layers: L.
    num_heads: H.
  """

  vocab_size: int
  d_model: int
  num_layers: int
  num_heads: int

  @property
  def embedding(self) -> int:
    """Elements of the embedding, V D."""
    return self.vocab_size * self.d_model

  @property
  def norms(self) -> int:
    """Elements of the norms' scales; two norms a block and one at the end."""
    return (2 * self.num_layers + 1) * self.d_model

  @property
  def params(self) -> int:
    """N: qkv has 3 D^2 a block, out 1, up 4, down 4."""
    return self.embedding + 12 * self.d_model**2 * self.num_layers + self.norms

  @property
  def whole(self) -> int:
    """Elements of the leaves that are too small to be split."""
    return self.norms if self.d_model < SMALLEST_SPLIT else 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Work:
  """A step's share of one device.

  Attributes:
    mesh: devices along `data` and along `model`.
    length: T.
    sequences: of one device.
  """

  mesh: tuple[int, int]
  length: int
  sequences: int

  @property
  def tokens(self) -> int:
    """Tokens of one device."""
    return self.length * self.sequences


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mode:
  """What a way of training keeps and does, in units of the params.

  Attributes:
    learning: arrays of the params' shapes that learning keeps between updates,
      tangents and last updates, split as the params are.
    within: the same, of tangents that live inside a window alone.
    gathered: whole trees that an update gathers: the params, and in exact mode
      their tangents.
    products: whole trees that an update sums over the devices: the gradient;
      in exact mode the two products of which its tangent is the sum besides.
    in_place: whether the sums take the place of what was gathered. So it is in
      a straight program, not in a window's loop (seen in compiled programs).
    held_out: gradients of a held-out batch, once a window.
    passes: reads and writes of a split tree by an update, at least: 7 of AdamW
      (params, two momenta, the gradient read), 2 for each tree kept besides.
    operations: of an update, over those of a gradient: in exact mode each
      product has two more for its tangent.
    per_width: bytes a token that one block's backward pass holds for each of
      D. This and the next four are calibrated at 10M.
    per_score: the same for each of H T.
    per_input: bytes of a block's input for each of D.
    per_logit: bytes a token for each of V.
    under_way: whole trees that are alive together with the activations, the
      gathered ones apart.
  """

  learning: int = 0
  within: int = 0
  gathered: int = 1
  products: int = 1
  in_place: bool = False
  held_out: int = 0
  passes: int = 7
  operations: int = 1
  per_width: float = 77.0
  per_score: float = 13.6
  per_input: float = 2.0
  per_logit: float = 10.0
  under_way: float = 0.0


MODES = {
  'plain loop': Mode(in_place=True),
  'drop-in': Mode(learning=2, in_place=True, within=1, passes=11),
  'plain': Mode(),
  'Hessian-free': Mode(learning=1, held_out=1, passes=9),
  'exact': Mode(
    within=3, gathered=2, products=3, held_out=1, passes=14, operations=3,
    per_width=232.0, per_score=35.2, per_input=4.0, per_logit=20.0,
    under_way=2.4,
  ),
}  # fmt: skip
OPTIMIZER = 2  # AdamW's momenta


def kept(model: Model, mesh: tuple[int, int], trees: int) -> float:
  """Bytes of trees of the params' shapes on one device."""
  split = (model.params - model.whole) / mesh[1]
  return FLOAT * trees * (split + model.whole)


def state(model: Model, mesh: tuple[int, int], mode: Mode) -> float:
  """Bytes that a device keeps: params, momenta, and what learning keeps."""
  return kept(model, mesh, 1 + OPTIMIZER + mode.learning)


def gathered(model: Model, mesh: tuple[int, int], trees: int) -> float:
  """Bytes of what a device has gathered of some trees."""
  return FLOAT * trees * (model.params - model.whole) * (mesh[1] > 1)


def summed(model: Model, mode: Mode) -> float:
  """Bytes of an update's sums over the devices.

  The embedding is used twice, so that its gradient is a sum of two, and XLA
  sums each over the devices; of the norms' tangents it sums one product.
  """
  parts = mode.products * model.params
  if mode.products == 1:
    return FLOAT * (parts + model.embedding)
  return FLOAT * (parts + 2 * model.embedding - model.norms)


def exchanged(model: Model, mesh: tuple[int, int], mode: Mode) -> dict:
  """Bytes gathered and summed by a program, each loop's body once."""
  return {
    'gathered': gathered(model, mesh, mode.gathered + mode.held_out),
    'summed': summed(model, mode) + mode.held_out * summed(model, Mode()),
  }


def whole_gradients(model: Model, mode: Mode) -> float:
  """Bytes of whole gradients: a device's own ones and their sums."""
  return summed(model, mode) * (1 if mode.in_place else 2)


def activations(model: Model, work: Work, mode: Mode) -> float:
  """Bytes of activations where they are the most.

  That is at the logits, or in the backward pass of one block, with the inputs
  of all blocks kept in both cases.
  """
  inputs = mode.per_input * model.d_model * model.num_layers
  block = mode.per_width * model.d_model
  block += mode.per_score * model.num_heads * work.length
  logits = mode.per_logit * model.vocab_size
  return work.tokens * (inputs + max(block, logits))


def alive(model: Model, work: Work, mode: Mode) -> float:
  """Bytes of activations, with the trees that are alive at the same time."""
  under_way = FLOAT * mode.under_way * model.params
  return activations(model, work, mode) + under_way


def temporary(model: Model, work: Work, mode: Mode) -> float:
  """Bytes that a running step holds besides its state.

  Activations are gone when the last gradients are summed, so that the larger
  of the two counts.
  """
  later = max(whole_gradients(model, mode), alive(model, work, mode))
  whole = FLOAT * mode.gathered * model.params
  return whole + later + kept(model, work.mesh, mode.within)


def gradient_operations(model: Model, length: int) -> float:
  """FLOPs a token of a loss's gradient, of matrix products.

  A product forward has two in the backward pass. All of a block but its last
  product is computed twice. Attention multiplies whole rows, masked or not.
  """
  width, layers = model.d_model, model.num_layers
  block = 24 * width**2 + 4 * length * width
  last = 8 * width**2
  return layers * (4 * block - last) + 6 * model.embedding


def operations(model: Model, work: Work, mode: Mode) -> float:
  """FLOPs of a device's program, each loop's body once."""
  gradients = mode.operations + mode.held_out
  return gradients * work.tokens * gradient_operations(model, work.length)


def update_traffic(model: Model, mesh: tuple[int, int], mode: Mode) -> float:
  """Bytes that an update reads and writes of its device's share, at least."""
  return kept(model, mesh, mode.passes)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Machine:
  """Figures of an accelerator's data sheet, a second.

  Attributes:
    operations: FLOPs in bfloat16, dense.
    reached: the share of them that training reaches.
    memory: bytes read or written.
    group_link: bytes between the devices of a group, one way.
    link: bytes between any others, one way.
  """

  operations: float
  reached: float
  memory: float
  group_link: float
  link: float


def memory(model: Model, work: Work, mode: Mode) -> dict[str, float]:
  """Bytes of one device by what they are for, and the most at one time."""
  return {
    'params': kept(model, work.mesh, 1),
    'AdamW': kept(model, work.mesh, OPTIMIZER),
    'learning': kept(model, work.mesh, mode.learning + mode.within),
    'gathered params': FLOAT * mode.gathered * model.params,
    'gradients': whole_gradients(model, mode),
    'activations': alive(model, work, mode),
    'together': state(model, work.mesh, mode) + temporary(model, work, mode),
  }


def received(
  model: Model, mesh: tuple[int, int], mode: Mode
) -> dict[str, float]:
  """Bytes that a device receives in an update, at best.

  An all-gather and a reduce-scatter receive what is whole but a device's own
  part; the parts are then summed over the groups, in two such rounds.
  """
  groups, size = mesh
  others = 1 - 1 / size
  return {
    'gathered': others * gathered(model, mesh, mode.gathered),
    'summed': others * summed(model, mode),
    'across': 2 * (1 - 1 / groups) * summed(model, mode) / size,
  }


def seconds(
  model: Model, work: Work, mode: Mode, machine: Machine, *, group: int
) -> dict[str, float]:
  """Seconds of an update: its products, its arrays, its exchange.

  Args:
    model: its sizes.
    work: one device's share.
    mode: the way of training.
    machine: the accelerator.
    group: how many of them have the faster link.
  """
  flops = work.tokens * gradient_operations(model, work.length)
  near = received(model, work.mesh, mode)
  across = near.pop('across') / machine.link
  link = machine.group_link if work.mesh[1] <= group else machine.link
  reached = machine.operations * machine.reached
  return {
    'products': mode.operations * flops / reached,
    'arrays': update_traffic(model, work.mesh, mode) / machine.memory,
    'exchange': sum(near.values()) / link + across,
  }


def over_plain(
  model: Model,
  work: Work,
  mode: Mode,
  machine: Machine,
  *,
  group: int,
  window: int,
) -> float:
  """Time of a window of K updates over plain training's.

  Nothing is done at the same time, and a held-out batch is as large as another.
  """
  cost = lambda m: sum(seconds(model, work, m, machine, group=group).values())
  plain = Mode()
  gradient = cost(dataclasses.replace(plain, passes=0))
  spent = window * cost(mode) + mode.held_out * gradient
  return spent / (window * cost(plain))
