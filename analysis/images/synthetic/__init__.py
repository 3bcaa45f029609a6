"""Generated images with a shape and a texture, either of which may name the class, and a dial for each.

Each of twelve classes has an outline and a texture of its own. A congruent image shows both of one class, a conflict
image the outline of one and the texture of another. The texture covers the whole image, as in the stimuli of Geirhos et
al., so that its border tells nothing about the shape. A dial scales the contrast of its cue and nothing else: that of
the texture, or that between figure and ground.

Image `index` of a set depends on the set's options, its seed and its index alone.
"""
