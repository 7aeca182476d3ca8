"""The whole study, and the checks that need more than one of its sections."""

from typing import Annotated

from pydantic import Field, ValidationError, model_validator

from effllm.data.captions.settings import Captions
from effllm.data.images.settings import Images
from effllm.data.instructions.settings import Instructions
from effllm.data.latents.settings import AutoencoderSource, Latents
from effllm.data.order.settings import Order
from effllm.data.settings import Corpus, EncodedStream, SyntheticStream, Tokenizer, TokenStream, TrainedTokenizer
from effllm.fidelity.settings import FeatureNetwork, Fidelity, Sampling
from effllm.fields import LONGEST_TEXT, Id, PlainId, Section, Text, require, shortened, suggestion
from effllm.models.generators.settings import Generator
from effllm.models.sources import AnyArchitecture, RandomSource
from effllm.quantization import AnyPrecision, Precision, check_name
from effllm.quantization.precision import Calibration
from effllm.serving.settings import Serving
from effllm.study.agreement import check_chats, check_curves, check_lengths, check_names, check_vocabularies
from effllm.study.budgets import Budget, check_budgets
from effllm.study.diffusion import check_diffusion
from effllm.study.evaluation import (
    Benchmark,
    EvaluationProtocol,
    HarnessBenchmark,
    HeldOutBenchmark,
    InferenceProtocol,
)
from effllm.study.harness_index import harness_suggestions, harness_task_exists
from effllm.study.models import FinetunedSource, Model, PretrainedSource
from effllm.study.orders import check_orders
from effllm.study.scaling import Scaling
from effllm.study.tables import Tables
from effllm.study.tuning import check_tuning
from effllm.study.vision import check_images, check_tokenizers, starts_from_random_weights
from effllm.training.diffusion_settings import DiffusionRun
from effllm.training.methods import AnyMethod
from effllm.training.settings import PretrainingRun
from effllm.training.suites import FinetuningSuite, suite_misfit
from effllm.training.tuning_settings import TuningSuite


class _PrecisionOf(Section):
    """Wraps the union, so that a merged precision is validated like one read from the file."""

    precision: AnyPrecision


class Study(Section):
    """Everything that decides a result. Where and how it runs is a profile's business."""

    name: Text = Field(description="Name of the study.")
    description: Annotated[str, Field(max_length=LONGEST_TEXT)] = Field(
        default="", description="What it is for, in a sentence."
    )
    corpora: dict[Id, Corpus] = Field(default_factory=dict, description="Corpora by id.")
    tokenizers: dict[Id, Tokenizer] = Field(default_factory=dict, description="Tokenizers by id.")
    tokens: dict[Id, TokenStream] = Field(default_factory=dict, description="Token streams by id.")
    orders: dict[Id, Order] = Field(default_factory=dict, description="Orders of the windows of streams by id.")
    instructions: dict[Id, Instructions] = Field(
        default_factory=dict, description="Instruction data for fine-tuning by id."
    )
    images: dict[Id, Images] = Field(default_factory=dict, description="Images for diffusion by id.")
    captions: dict[PlainId, Captions] = Field(
        default_factory=dict, description="Images and clips with captions, for fine-tuning, by id."
    )
    generators: dict[Id, Generator] = Field(
        default_factory=dict, description="Pipelines that draw images or videos from text, by id."
    )
    autoencoders: dict[Id, AutoencoderSource] = Field(
        default_factory=dict, description="Autoencoders of images by id: diffusers' AutoencoderKL, as saved by itself."
    )
    latents: dict[Id, Latents] = Field(default_factory=dict, description="Latents of images by id.")
    pretraining: dict[Id, PretrainingRun] = Field(default_factory=dict, description="Pretraining runs by id.")
    diffusion: dict[Id, DiffusionRun] = Field(default_factory=dict, description="Runs of diffusion by id.")
    sampling: dict[PlainId, Sampling] = Field(default_factory=dict, description="Images sampled from runs, by id.")
    features: dict[Id, FeatureNetwork] = Field(
        default_factory=dict, description="Networks that give features of images, by id."
    )
    fidelity: dict[PlainId, Fidelity] = Field(
        default_factory=dict, description="How close samples come to real images, by id."
    )
    models: dict[Id, Model] = Field(default_factory=dict, description="Models under test by id.")
    methods: dict[PlainId, AnyMethod] = Field(default_factory=dict, description="Fine-tuning methods by id.")
    finetuning: dict[PlainId, FinetuningSuite] = Field(default_factory=dict, description="Fine-tuning suites by id.")
    tuning: dict[PlainId, TuningSuite] = Field(
        default_factory=dict, description="Fine-tuning suites for images and videos by id."
    )
    precisions: dict[PlainId, AnyPrecision] = Field(default_factory=dict, description="Precisions by id.")
    benchmarks: dict[PlainId, Benchmark] = Field(default_factory=dict, description="Benchmarks by id.")
    evaluation: EvaluationProtocol = Field(description="How benchmarks are run.")
    inference: InferenceProtocol = Field(description="The fixed inference workload.")
    serving: dict[PlainId, Serving] = Field(default_factory=dict, description="Models under load, by id.")
    tables: Tables = Field(description="The tables, by the paper's numbers.")
    budgets: dict[PlainId, Budget] = Field(
        default_factory=dict, description="What a recommendation must respect, by table. They run nothing again."
    )
    scaling: Scaling | None = Field(default=None, description="Scaling laws over the tables; null fits none.")

    @model_validator(mode="after")
    def _methods_are_whole(self) -> "Study":
        """Methods hold what they take from others: a run's settings say all that decides it."""
        methods = {id: method.resolved(f"methods.{id}", self.methods) for id, method in self.methods.items()}
        return self if methods == self.methods else self.model_copy(update={"methods": methods})

    @model_validator(mode="after")
    def _references_exist(self) -> "Study":
        for id, tokenizer in self.tokenizers.items():
            if isinstance(tokenizer, TrainedTokenizer):
                require(f"tokenizers.{id}.corpus", tokenizer.corpus, self.corpora)
        for id, stream in self.tokens.items():
            if isinstance(stream, SyntheticStream):
                continue
            require(f"tokens.{id}.corpus", stream.corpus, self.corpora)
            require(f"tokens.{id}.tokenizer", stream.tokenizer, self.tokenizers)
        for id, run in self.pretraining.items():
            require(f"pretraining.{id}.tokens", run.tokens, self.tokens)
        check_orders(self)
        check_diffusion(self)
        for id, benchmark in self.benchmarks.items():
            if isinstance(benchmark, HeldOutBenchmark):
                require(f"benchmarks.{id}.corpus", benchmark.corpus, self.corpora)
            if isinstance(benchmark, HarnessBenchmark) and not harness_task_exists(benchmark.task):
                near = harness_suggestions(benchmark.task)
                remedy = f"did you mean {' or '.join(map(repr, near))}?" if near else "list them with: lm-eval ls tasks"
                raise ValueError(f"benchmarks.{id}.task: lm-eval has no task {benchmark.task!r}; {remedy}")
        for id, precision in self.precisions.items():
            check_name(f"precisions.{id}", id, precision)
        if self.evaluation.divergence_from is not None:
            require("evaluation.divergence_from", self.evaluation.divergence_from, self.precisions)
        for id, model in self.models.items():
            if isinstance(model.source, PretrainedSource):
                require(f"models.{id}.source.run", model.source.run, self.pretraining)
                self._check_kept(f"models.{id}.source.run", model.source.run)
            for name in model.precisions:
                require(f"models.{id}.precisions", name, self.precisions)
                self._check_settings(id, name)
        check_tokenizers(self)
        for id, suite in self.finetuning.items():
            self._check_suite(f"finetuning.{id}", suite)
        check_tuning(self)
        for id, model in self.models.items():
            if isinstance(model.source, FinetunedSource):
                self._check_finetuned(f"models.{id}.source", model.source)
        for name, table in self.tables.defined().items():
            table.check(self, f"tables.{name}")
        if self.scaling:
            self.scaling.check(self)
        check_budgets(self.budgets)
        check_names(self)
        check_vocabularies(self)
        check_curves(self)
        check_chats(self)
        check_lengths(self)
        return self

    def encoded(self, tokens: str) -> EncodedStream:
        """A token stream that is text, as that of an order is."""
        stream = self.tokens[tokens]
        assert isinstance(stream, EncodedStream)
        return stream

    def precision_of(self, model: str, precision: str) -> Precision:
        """The settings of a precision for one model: the study's own, with the model's differences applied."""
        settings = self.precisions[precision].model_dump() | self.models[model].precisions.get(precision, {})
        return _PrecisionOf.model_validate({"precision": settings}).precision

    def architecture_of(self, model: str) -> AnyArchitecture | None:
        """The shape of a model that the study makes, fine-tuned or not; None for one that it fetches."""
        source = self.models[model].source
        if isinstance(source, RandomSource):
            return source.architecture
        if isinstance(source, FinetunedSource):
            return self.architecture_of(source.model)
        return self.pretraining[source.run].architecture if isinstance(source, PretrainedSource) else None

    def corpus_behind(self, model: str) -> str | None:
        """Id of the corpus that a model was pretrained on here; None where the study did not train it."""
        source = self.models[model].source
        if isinstance(source, FinetunedSource):
            return self.corpus_behind(source.model)
        stream = self.tokens[self.pretraining[source.run].tokens] if isinstance(source, PretrainedSource) else None
        return None if stream is None or isinstance(stream, SyntheticStream) else stream.corpus

    def images_behind(self, run: str) -> str:
        """Id of the images that a run of diffusion learns to draw, by their latents or themselves."""
        learned = self.diffusion[run].images
        return self.latents[learned].images if learned in self.latents else learned

    def makes_adapter(self, source: FinetunedSource) -> bool:
        """Whether fine-tuning makes an adapter, which is merged before it is used, and not a whole model."""
        return not self.methods[source.method].trains_whole_model

    def _check_finetuned(self, where: str, source: FinetunedSource) -> None:
        require(f"{where}.suite", source.suite, self.finetuning)
        suite = self.finetuning[source.suite]
        require(f"{where}.model", source.model, suite.models)
        require(f"{where}.method", source.method, suite.methods)
        require(f"finetuning.{source.suite}.instructions", suite.instructions, self.instructions)
        if self.instructions[suite.instructions].is_synthetic:
            raise ValueError(
                f"{where}.suite: {source.suite!r} trains on the random tokens of {suite.instructions!r} and keeps no "
                "weights; test its base model"
            )

    def _check_suite(self, where: str, suite: FinetuningSuite) -> None:
        require(f"{where}.instructions", suite.instructions, self.instructions)
        is_synthetic = self.instructions[suite.instructions].is_synthetic
        for id in suite.methods:
            require(f"{where}.methods", id, self.methods)
        for id in suite.models:
            require(f"{where}.models", id, self.models)
            source = self.models[id].source
            if isinstance(source, FinetunedSource) and not starts_from_random_weights(self, id):
                raise ValueError(f"{where}.models: {id!r} is fine-tuned already; name its base model")
            if isinstance(source, RandomSource) and source.tokenizer is None and not is_synthetic:
                raise ValueError(
                    f"{where}.models: {id!r} has random weights and no tokenizer to read {suite.instructions!r} with; "
                    "give the suite synthetic instructions, or take the model out of it"
                )
            shape = self.architecture_of(id)
            if shape is not None and (misfit := suite_misfit(suite, self.methods, id, shape)):
                raise ValueError(f"{where}: {misfit}")
        check_images(self, where, suite)

    def _check_kept(self, where: str, run: str) -> None:
        tokens = self.pretraining[run].tokens
        if isinstance(self.tokens[tokens], SyntheticStream):
            raise ValueError(
                f"{where}: {run!r} trains on the random tokens of {tokens!r} and keeps no weights; use a source of "
                "kind random with its architecture"
            )

    def _check_settings(self, model: str, precision: str) -> None:
        where = f"models.{model}.precisions.{precision}"
        own = self.precisions[precision]
        for key, value in self.models[model].precisions[precision].items():
            if key == "kind":
                raise ValueError(f"{where}.kind: that of {precision!r} is the same for every model; add a precision")
            if key not in type(own).model_fields:
                known = [name for name in type(own).model_fields if name != "kind"]
                raise ValueError(f"{where}.{key}: unknown key (value {shortened(value)}); {suggestion(key, known)}")
        try:
            settings = self.precision_of(model, precision)
        except ValidationError as error:
            details = "; ".join(
                f"{'.'.join(str(part) for part in item['loc'][2:])}: {item['msg']} (got {shortened(item['input'])})"
                for item in error.errors()
            )
            raise ValueError(f"{where}: {details}") from None
        check_name(where, precision, settings)

    def check_precision(self, model: str, precision: str) -> None:
        """Raise ValueError if a model cannot be had in a precision: its shape, or what it is calibrated with."""
        where = f"models.{model}.precisions.{precision}"
        settings = self.precision_of(model, precision)
        calibration = settings.calibration_set()
        if calibration is not None:
            self._check_calibration(model, precision, calibration)
        shape = self.architecture_of(model)
        if shape is not None and (misfit := settings.misfit(shape)):
            raise ValueError(f"{where}: {misfit}")

    def _check_calibration(self, model: str, precision: str, calibration: Calibration) -> None:
        where = f"precisions.{precision}.calibration"
        source = self.models[model].source
        if calibration.corpus is not None:
            require(f"{where}.corpus", calibration.corpus, self.corpora)
            if isinstance(source, RandomSource) and source.tokenizer is None:
                raise ValueError(
                    f"{where}.corpus: {model!r} has random weights and no tokenizer to read {calibration.corpus!r} "
                    "with; name a synthetic stream as calibration.tokens"
                )
            return
        require(f"{where}.tokens", calibration.source, self.tokens)
        stream = self.tokens[calibration.source]
        if not isinstance(stream, SyntheticStream):
            raise ValueError(
                f"{where}.tokens: {calibration.source!r} is encoded text; name its corpus as calibration.corpus, "
                "which every model reads with its own tokenizer"
            )
        if not isinstance(source, RandomSource):
            raise ValueError(
                f"{where}.tokens: {model!r} is a trained model, which random tokens calibrate badly; name a corpus as "
                f"calibration.corpus, or as models.{model}.precisions.{precision}.calibration.corpus"
            )
        words = source.architecture.vocab_size
        # Random weights state their vocabulary.
        assert words is not None
        if stream.vocab_size > words:
            raise ValueError(
                f"{where}.tokens: {calibration.source!r} has {stream.vocab_size} ids, {model!r} has "
                f"{words}; name a stream of at most so many"
            )
        needed = calibration.samples * calibration.sequence_length
        if stream.tokens < needed:
            raise ValueError(
                f"{where}.samples: {calibration.source!r} has {stream.tokens} tokens, {calibration.samples} sequences "
                f"of {calibration.sequence_length} take {needed}; lower it, or enlarge tokens.{calibration.source}"
            )
