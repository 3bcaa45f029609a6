"""One depthwise convolution for every device, and the 1x1 convolutions beside it.

`depthwise` is the function and the layer; `planning` decides which way a call takes, `applying` takes it: by
`spectral`, by `rearranged`, or on a GPU by `toeplitz` (its Triton kernels and the `tiles` for them); `autograd` and
`operators` make it differentiable and fit for graphs. `layouts` is about memory, `pointwise` about 1x1 convolutions.
"""
