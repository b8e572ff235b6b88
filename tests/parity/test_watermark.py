"""Both watermarks and their detectors against transformers 4.56.2."""

import numpy as np
import pytest
import torch

import gptrio

transformers = pytest.importorskip("transformers")

VOCAB = 120


def random_ids(rows, length, seed=0, vocab=VOCAB):
    return torch.randint(0, vocab, (rows, length), generator=torch.Generator().manual_seed(seed))


def random_scores(rows, seed=0):
    return torch.randn(rows, VOCAB, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("scheme", ["lefthash", "selfhash"])
@pytest.mark.parametrize("width", [1, 3])
def test_green_list_processor(scheme, width):
    arguments = {"seeding_scheme": scheme, "context_width": width, "bias": 1.5, "greenlist_ratio": 0.3}
    ours, theirs = (lib.WatermarkLogitsProcessor(VOCAB, "cpu", **arguments) for lib in (gptrio, transformers))
    for seed in range(3):
        ids, scores = random_ids(2, 5, seed), random_scores(2, seed)
        torch.testing.assert_close(ours(ids, scores), theirs(ids, scores), rtol=0, atol=0)


def test_green_list_waits_for_its_context():
    processor = gptrio.WatermarkLogitsProcessor(VOCAB, "cpu", context_width=4)
    scores = random_scores(1)
    with pytest.warns(gptrio.GptrioWarning, match="context_width=4"):
        assert torch.equal(processor(random_ids(1, 3), scores), scores)


@pytest.mark.parametrize("scheme", ["lefthash", "selfhash"])
def test_green_list_detector(scheme):
    options = {"seeding_scheme": scheme, "context_width": 2, "bias": 8.0}
    ours, theirs = (
        lib.WatermarkDetector(lib.GPT2Config(vocab_size=VOCAB), "cpu", lib.WatermarkingConfig(**options))
        for lib in (gptrio, transformers)
    )
    ids = torch.cat([random_ids(2, 30, seed=7), marked_text(options, rows=2)])
    found, expected = ours(ids, return_dict=True), theirs(ids, return_dict=True)
    for name, value in vars(expected).items():
        np.testing.assert_allclose(getattr(found, name), value, rtol=1e-12, err_msg=name)
    assert ours(ids).tolist() == theirs(ids).tolist() == [False, False, True, True]


def marked_text(options, rows, length=30):
    """Greedy text of random scores under the watermark."""
    processor = gptrio.WatermarkLogitsProcessor(VOCAB, "cpu", **options)
    ids = random_ids(rows, 3)
    for step in range(length - 3):
        best = processor(ids, random_scores(rows, seed=step)).argmax(-1, keepdim=True)
        ids = torch.cat([ids, best], dim=1)
    return ids


def test_repeated_ngrams_count_once_when_asked():
    detector = gptrio.WatermarkDetector(
        gptrio.GPT2Config(vocab_size=VOCAB), "cpu", gptrio.WatermarkingConfig(), ignore_repeated_ngrams=True
    )
    found = detector(torch.tensor([[1, 2, 1, 2, 1, 2, 3]]), return_dict=True)
    assert found.num_tokens_scored.tolist() == [3]  # (1, 2), (2, 1), (2, 3)


def test_too_short_text_is_refused():
    detector = gptrio.WatermarkDetector(
        gptrio.GPT2Config(vocab_size=VOCAB), "cpu", gptrio.WatermarkingConfig(context_width=3)
    )
    with pytest.raises(gptrio.InputError, match="context_width=3"):
        detector(torch.tensor([[1, 2, 3]]))


SYNTHID = {"ngram_len": 4, "keys": [654, 400, 836, 123], "sampling_table_size": 2**10, "sampling_table_seed": 3,
           "context_history_size": 8, "device": "cpu"}  # fmt: skip


@pytest.mark.parametrize("flags", [{}, {"skip_first_ngram_calls": True}, {"debug_mode": True}], ids=str)
def test_synthid_processor_over_steps(flags):
    ours, theirs = (lib.SynthIDTextWatermarkLogitsProcessor(**SYNTHID, **flags) for lib in (gptrio, transformers))
    ids = random_ids(3, 2, vocab=3)  # few tokens: contexts recur
    for step in range(25):
        scores = random_scores(3, step)
        torch.testing.assert_close(ours(ids, scores), theirs(ids, scores), rtol=0, atol=0)
        ids = torch.cat([ids, random_ids(3, 1, step, vocab=3)], dim=1)


def test_synthid_detection_parts():
    ours, theirs = (lib.SynthIDTextWatermarkLogitsProcessor(**SYNTHID) for lib in (gptrio, transformers))
    ids = random_ids(3, 40, vocab=3)
    assert torch.equal(ours.compute_g_values(ids), theirs.compute_g_values(ids))
    assert torch.equal(ours.compute_context_repetition_mask(ids), theirs.compute_context_repetition_mask(ids))
    assert torch.equal(ours.compute_eos_token_mask(ids, 2), theirs.compute_eos_token_mask(ids, 2))
    assert ours.expected_mean_g_value(VOCAB) == theirs.expected_mean_g_value(VOCAB)


def test_synthid_detector():
    ours = gptrio.BayesianDetectorModel(gptrio.BayesianDetectorConfig(watermarking_depth=4, base_rate=0.3))
    theirs = transformers.BayesianDetectorModel(
        transformers.BayesianDetectorConfig(watermarking_depth=4, base_rate=0.3)
    )
    theirs.load_state_dict(ours.state_dict())
    ids = random_ids(3, 20)

    class Tokenizer:
        eos_token_id = 5

    found, expected = (
        lib.SynthIDTextWatermarkDetector(model, lib.SynthIDTextWatermarkLogitsProcessor(**SYNTHID), Tokenizer())(ids)
        for lib, model in ((gptrio, ours), (transformers, theirs))
    )
    torch.testing.assert_close(found[0], expected[0])


def test_synthid_detector_files_open_both_ways(tmp_path):
    ours = gptrio.BayesianDetectorModel(gptrio.BayesianDetectorConfig(watermarking_depth=4, base_rate=0.3))
    ours.save_pretrained(tmp_path / "ours")
    theirs = transformers.BayesianDetectorModel.from_pretrained(tmp_path / "ours")
    theirs.save_pretrained(tmp_path / "theirs")
    again = gptrio.BayesianDetectorModel.from_pretrained(tmp_path / "theirs")
    for name, value in ours.state_dict().items():
        assert torch.equal(value, theirs.state_dict()[name])
        assert torch.equal(value, again.state_dict()[name])
    torch.save({"prior": torch.zeros(1)}, tmp_path / "ours" / "pytorch_model.bin")
    (tmp_path / "ours" / "model.safetensors").unlink()
    with pytest.raises(gptrio.CheckpointFormatError, match="lacks the weights"):
        gptrio.BayesianDetectorModel.from_pretrained(tmp_path / "ours")


def test_synthid_detector_learns_as_upstream():
    ours = gptrio.BayesianDetectorModel(gptrio.BayesianDetectorConfig(watermarking_depth=3))
    theirs = transformers.BayesianDetectorModel(transformers.BayesianDetectorConfig(watermarking_depth=3))
    theirs.load_state_dict(ours.state_dict())
    bits = torch.randint(0, 2, (4, 6, 3), generator=torch.Generator().manual_seed(1))
    mask, labels = torch.ones(4, 6), torch.tensor([1.0, 0.0, 1.0, 0.0])
    losses = []
    for model in (ours, theirs):
        output = model(bits, mask, labels, loss_batch_weight=0.1, return_dict=True)
        output.loss.backward()
        losses.append(output.loss.detach())
    torch.testing.assert_close(*losses)
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter.grad, dict(theirs.named_parameters())[name].grad)


def test_synthid_refuses_another_batch():
    processor = gptrio.SynthIDTextWatermarkLogitsProcessor(**SYNTHID)
    processor(random_ids(2, 2), random_scores(2))
    with pytest.raises(gptrio.InputError, match="has state for 2 rows and got 3"):
        processor(random_ids(3, 2), random_scores(3))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (gptrio.WatermarkingConfig(greenlist_ratio=1.5), "greenlist_ratio=1.5"),
        (gptrio.WatermarkingConfig(seeding_scheme="best"), "seeding_scheme='best'"),
        (gptrio.WatermarkingConfig(context_width=0), "context_width=0"),
        (gptrio.SynthIDTextWatermarkingConfig(ngram_len=5, keys=[]), "keys is empty"),
        (gptrio.SynthIDTextWatermarkingConfig(ngram_len=5, keys=[1], sampling_table_size=2**25), "sampling_table_size"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_impossible_options_are_named(config, message):
    with pytest.raises(gptrio.OptionError, match=message):
        config.validate()
    with pytest.raises(gptrio.OptionError, match=message):
        gptrio.GenerationConfig(watermarking_config=config)


def test_unknown_watermark_option_names_the_nearest():
    with pytest.raises(gptrio.OptionError, match="did you mean 'bias'"):
        gptrio.WatermarkingConfig.from_dict({"bais": 1.0})
