"""As much of torch.Tensor as the package looks at, over a NumPy array."""


class Tensor:
    def __init__(self, array, device=-1):
        self.array, self.device_index = array, device

    def data_ptr(self):
        return self.array.__array_interface__["data"][0]

    def numel(self):
        return self.array.size

    def element_size(self):
        return self.array.itemsize

    def is_contiguous(self):
        return self.array.flags["C_CONTIGUOUS"]

    def get_device(self):
        return self.device_index

    def __getitem__(self, i):
        if self.array.ndim == 0 or i >= len(self.array):
            raise IndexError(i)
        return Tensor(self.array[i : i + 1], self.device_index)
