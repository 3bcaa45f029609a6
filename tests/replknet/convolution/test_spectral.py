from replknet.convolution import spectral


def test_transform_lengths_hold_the_lags_and_are_smooth() -> None:
    assert [spectral.transform_length(n) for n in (1, 2, 15, 27, 41, 43, 69, 86, 271)] == [
        *(1, 2, 16, 28, 42, 44, 72, 88, 280)
    ]
