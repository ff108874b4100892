"""Names of data sets and models, for those who need nothing else."""

from typing import Literal

DataName = Literal["digits", "fashion-mnist"]
ModelName = Literal["mlp", "cnn", "autoencoder", "transformer", "linear", "small", "coarse"]
