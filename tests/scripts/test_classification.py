"""The data and the models of classify.py."""

import gzip
import struct

import numpy as np
import pytest
import torch
from classification import curves, data, idx, models
from classification.options import Options
from classify import main
from common import run_directory
from torch.distributions import Bernoulli, Categorical

from npg.errors import ConfigurationError
from npg.likelihoods import as_distribution

CPU = torch.device("cpu")


def idx_bytes(array):
    """The format as its description has it: 0, 0, 8, dimensions, sizes, bytes."""
    return (
        struct.pack(f">4B{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
        + array.astype(np.uint8).tobytes()
    )


@pytest.fixture
def files(tmp_path):
    """Fashion-MNIST of 40 and 20 images, one half of the files gzipped."""
    generator = np.random.default_rng(0)
    directory = tmp_path / "images"
    directory.mkdir()
    for part, number in (("train", 40), ("t10k", 20)):
        images = generator.integers(0, 256, (number, 28, 28))
        labels = np.arange(number) % 10
        (directory / f"{part}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx_bytes(images)))
        (directory / f"{part}-labels-idx1-ubyte").write_bytes(idx_bytes(labels))
    return directory


# ------------------------------------------------------------------------------------------ IDX


@pytest.mark.parametrize("compressed", [False, True])
def test_idx(compressed, tmp_path):
    array = np.arange(2 * 3 * 4).reshape(2, 3, 4) * 10
    content = idx_bytes(array)
    (tmp_path / "file").write_bytes(gzip.compress(content) if compressed else content)
    np.testing.assert_array_equal(idx.read(tmp_path / "file", 3), array)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda whole: whole[:-1], "holds 23 bytes of data where its header says 2 × 3 × 4"),
        (lambda whole: whole + b"0", "holds 25 bytes"),
        (lambda whole: whole[:10], "no IDX file of bytes with 3 dimensions"),
        (lambda whole: b"", "no IDX file"),
        (lambda whole: b"<html>" + whole, "no IDX file"),
        (lambda whole: b"\0\0\x0d" + whole[3:], "no IDX file of bytes"),  # floats
        (lambda whole: gzip.compress(whole)[:-9], "cut short or damaged"),
        (lambda whole: gzip.compress(whole)[:12] + b"?" * 30, "cut short or damaged"),
        (lambda whole: b"\x1f\x8b", "cut short or damaged"),
    ],
)
def test_what_is_no_idx_file(damage, message, tmp_path):
    (tmp_path / "file").write_bytes(damage(idx_bytes(np.zeros((2, 3, 4)))))
    with pytest.raises(ConfigurationError, match=message) as raised:
        idx.read(tmp_path / "file", 3)
    assert str(tmp_path / "file") in str(raised.value)
    assert "--data-dir" in str(raised.value)


def test_labels_in_place_of_images(tmp_path):
    (tmp_path / "file").write_bytes(idx_bytes(np.zeros(5)))
    with pytest.raises(ConfigurationError, match="with 3 dimensions"):
        idx.read(tmp_path / "file", 3)


# ----------------------------------------------------------------------------------------- data


def test_digits_are_split_by_the_seed():
    first, again, other = (data.load("digits", None, seed, CPU) for seed in (0, 0, 1))
    assert (len(first.train), len(first.test), first.classes) == (1438, 359, 10)
    assert first.image_size == 8
    assert torch.equal(first.test.images, again.test.images)
    assert not torch.equal(first.test.labels, other.test.labels)
    from sklearn.datasets import load_digits

    everything = load_digits()
    together = torch.cat([first.train.images, first.test.images]).flatten(1) * 16
    labels = torch.cat([first.train.labels, first.test.labels])
    rows = np.column_stack([together.numpy(), labels.numpy()])
    expected = np.column_stack([everything.data, everything.target])
    np.testing.assert_array_equal(rows[np.lexsort(rows.T)], expected[np.lexsort(expected.T)])


def test_imbalance_thins_the_training_data_alone():
    """Class k keeps the share 20^(−k/9); the test data are those of the balanced split."""
    whole, thin, again = (data.load("digits", None, 3, CPU, ratio) for ratio in (1, 20, 20))
    assert torch.equal(thin.test.images, whole.test.images)
    assert torch.equal(thin.train.images, again.train.images)
    counts, before = (torch.bincount(part.train.labels) for part in (thin, whole))
    shares = 20 ** (-torch.arange(10) / 9)
    assert counts.tolist() == (before * shares).round().int().tolist()
    rows = {bytes(image.numpy()) for image in whole.train.images}
    assert all(bytes(image.numpy()) in rows for image in thin.train.images)
    assert float(thin.train.inputs.mean()) == pytest.approx(0, abs=1e-5)
    assert torch.bincount(data.load("digits", None, 3, CPU, 1e9).train.labels)[9] == 1


def test_inputs_are_standardised_by_the_training_data():
    digits = data.load("digits", None, 0, CPU)
    assert float(digits.train.inputs.mean()) == pytest.approx(0, abs=1e-5)
    assert float(digits.train.inputs.std()) == pytest.approx(1, abs=1e-4)
    assert float(digits.train.images.min()) == 0
    assert float(digits.train.images.max()) == 1
    ratio = (digits.test.inputs[5] - digits.test.inputs[6]) * digits.train.images.std()
    torch.testing.assert_close(ratio, digits.test.images[5] - digits.test.images[6])


def test_fashion_mnist_from_files(files):
    loaded = data.load("fashion-mnist", files, 0, CPU)
    assert loaded.train.inputs.shape == (40, 1, 28, 28)
    assert loaded.test.labels.tolist() == [number % 10 for number in range(20)]
    raw = gzip.decompress((files / "t10k-images-idx3-ubyte.gz").read_bytes())[16:]
    pixels = np.frombuffer(raw, np.uint8).reshape(20, 1, 28, 28)
    np.testing.assert_allclose(loaded.test.images.numpy(), pixels / 255, rtol=1e-6)


def test_training_on_files(files, tmp_path):
    words = f"--data fashion-mnist --data-dir {files} --optimizer adam --batch-size 10 --epochs 1"
    assert main([*words.split(), "--track-dir", str(tmp_path / "runs"), "--no-progress-bar"]) == 0
    directory = tmp_path / "runs" / "fashion-mnist_mlp_adam_1"
    assert [row["time/step"] for row in run_directory.read_progress(directory)] == ["4"]
    words = f"--resume {directory} --epochs 2 --no-progress-bar"
    assert main(words.split()) == 0


def test_files_that_are_missing_or_do_not_belong_together(files):
    def reason():
        with pytest.raises(ConfigurationError) as raised:
            data.load("fashion-mnist", files, 0, CPU)
        assert "dataset-fashion-mnist" in str(raised.value)
        return str(raised.value)

    labels = files / "t10k-labels-idx1-ubyte"
    labels.write_bytes(idx_bytes(np.zeros(19)))
    assert "has 20 images in t10k-images-idx3-ubyte and 19 labels" in reason()
    labels.unlink()
    assert f"no t10k-labels-idx1-ubyte or t10k-labels-idx1-ubyte.gz in {files}" in reason()
    images = files / "train-images-idx3-ubyte.gz"
    images.write_bytes(idx_bytes(np.zeros((40, 8, 8))))  # not gzipped in spite of its name
    assert "images of 8 × 8 instead of 28 × 28" in reason()


# --------------------------------------------------------------------------------------- models


@pytest.mark.parametrize("size", [8, 28])
@pytest.mark.parametrize(
    "name", ["mlp", "cnn", "autoencoder", "transformer", "linear", "small", "coarse"]
)
def test_models_forward_and_backward(name, size):
    """The loss is the mean negative log-likelihood under the distribution that the task names."""
    model, task = models.build(name, size, classes=10)
    images = torch.rand(6, 1, size, size)
    samples = data.Samples(torch.randn(6, 1, size, size), images, torch.randint(10, (6,)))
    output = model(samples.inputs)
    loss = task.loss(output, samples)
    if name == "autoencoder":
        assert output.shape == (6, size**2)
        assert type(as_distribution(output, task.likelihood).base_dist) is Bernoulli
        expected = Bernoulli(logits=output, validate_args=False).log_prob(images.flatten(1)).sum(1)
        reconstructed = output.sigmoid().reshape(images.shape)
        error = torch.nn.functional.mse_loss(reconstructed, images, reduction="sum") / 6
        measure = task.measures["reconstruction_error"]
        torch.testing.assert_close(measure(output, samples), error)
    else:
        assert output.shape == (6, 10)
        assert type(as_distribution(output, task.likelihood)) is Categorical
        expected = Categorical(logits=output).log_prob(samples.labels)
    torch.testing.assert_close(loss, -expected.mean())
    loss.backward()
    assert all(bool((p.grad != 0).any()) for p in model.parameters())


def test_widths():
    def widths(model):
        return [p.shape[0] for name, p in model.named_parameters() if name.endswith("bias")]

    assert widths(models.build("mlp", 28, 10)[0]) == [256, 256, 10]
    assert widths(models.build("cnn", 28, 10)[0]) == [16, 32, 128, 10]
    assert widths(models.build("linear", 28, 10)[0]) == [10]
    assert widths(models.build("small", 28, 10)[0]) == [16, 10]
    # The middle of 784-500-250-30-250-500-784, and 64/784 of that, but 8 in the middle.
    assert widths(models.build("autoencoder", 28, 10)[0]) == [500, 250, 30, 250, 500, 784]
    assert widths(models.build("autoencoder", 8, 10)[0]) == [41, 20, 8, 20, 41, 64]


def test_the_transformer_knows_the_order_of_rows():
    model, _ = models.build("transformer", 8, 10)
    images = torch.randn(2, 1, 8, 8)
    assert not torch.allclose(model(images), model(images.flip(2)), atol=1e-4)
    with torch.no_grad():
        model.position.zero_()
    torch.testing.assert_close(model(images), model(images.flip(2)), atol=1e-5, rtol=1e-4)


# --------------------------------------------------------------------------------------- curves


def test_seeds_are_put_together_at_their_common_steps():
    def run(seed, steps, losses, optimizer="adam", lr=None):
        columns = {"time/step": np.array(steps), "test/loss": np.array(losses)}
        return curves.Curves(Options(optimizer=optimizer, lr=lr, seed=seed), columns)

    adam, sgd = curves.by_label(
        [
            run(0, [5, 10, 15], [4.0, 3.0, 2.0]),
            run(0, [5, 7], [1.0, 0.5], "sgd", 0.1),
            run(1, [5, 15, 20], [2.0, 1.0, 0.0]),
        ]
    )
    assert (adam.label, sgd.label) == ("adam", "sgd, lr=0.1")
    assert adam.columns["time/step"].tolist() == [[5, 15], [5, 15]]
    assert adam.columns["test/loss"].tolist() == [[4, 2], [2, 1]]
    assert adam.mean("test/loss").tolist() == [3, 1.5]
    assert sgd.mean("test/loss").tolist() == [1, 0.5]
    with pytest.raises(ConfigurationError, match="adam were never evaluated at the same step"):
        curves.by_label([run(0, [5], [1.0]), run(1, [6], [1.0])])
