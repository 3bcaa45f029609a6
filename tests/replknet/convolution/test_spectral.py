from replknet.convolution import spectral


def test_lengths_hold_the_minimum_and_are_smooth() -> None:
    assert [spectral.line_length(n) for n in (1, 16, 17, 721, 729, 5041)] == [16, 16, 32, 768, 768, 5120]
    assert [spectral.side_length(n) for n in (1, 2, 27, 69, 86, 271)] == [1, 4, 28, 72, 88, 280]


def test_a_grid_holds_every_lag_without_wrapping() -> None:
    for height, width, kernel in ((1, 1, 1), (7, 9, 13), (56, 56, 31), (300, 20, 31), (256, 256, 51)):
        geom = spectral.geometry(height, width, min(kernel, 2 * height - 1), min(kernel, 2 * width - 1))
        rows, columns = geom.grid
        assert rows >= height + geom.reach[0]
        assert columns >= width + geom.reach[1]
        assert geom.points >= rows * columns
        assert (len(geom.length) == 1) == (geom.points <= spectral.LARGEST_LINE)
