"""Every kind of model that can be fitted."""

from dogfit.kernels.model.custom import CustomModel
from dogfit.kernels.model.gaussian import GaussianModel

Model = GaussianModel | CustomModel
