"""The operators `torch.ops.eca_triton.*`: importing this package registers them. Needs torch and einops."""

from . import autograd as autograd
from . import batch_norm as batch_norm
from . import flops as flops
from . import implementation as implementation
from . import vmap as vmap
from .operators import OPERATORS

flops.register({op: row.flops for op, row in OPERATORS.items()})
