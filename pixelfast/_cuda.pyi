"""The cuda runtime. See csrc/cuda/bind.cpp."""

from ._emulated import Program as Program
from ._emulated import backend as backend
from ._emulated import device_count as device_count
from ._emulated import devices as devices
from ._emulated import masked_conv as masked_conv
from ._emulated import masked_conv_weight_grad as masked_conv_weight_grad
from ._emulated import most_taps as most_taps
