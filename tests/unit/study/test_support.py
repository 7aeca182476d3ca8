"""What the configuration believes of libraries is what they do."""

from effllm.quantization.calibrated import GPTQ_MODEL_TYPES


def test_quantizer_knows_the_architectures_that_the_configuration_admits() -> None:
    from gptqmodel.models.auto import SUPPORTED_MODELS

    assert set(SUPPORTED_MODELS) >= GPTQ_MODEL_TYPES
