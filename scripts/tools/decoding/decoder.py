"""What diffusers' decoders have in common."""


class Decoder:
    """A pipeline of diffusers without the networks that only turn pictures into embeddings: those are here already."""

    def __init__(self, choice, options, pictures, dtype):
        """Loads it. `options`: those of the command line. `pictures`: what is given beside the embeddings, by name."""
        self.choice, self.options, self.pictures, self.dtype = choice, options, pictures, dtype
        self.pipeline = self.load()

    def load(self):
        """The pipeline."""
        raise NotImplementedError

    def settings(self, embed, negative, prompt):
        """What the pipeline is called with for a row: `(1, dim)` tensors, on the pipeline's device, and the text."""
        raise NotImplementedError

    @property
    def dim(self):
        """The length of the embeddings that it takes."""
        component, entry = self.choice.family.dim_at
        return getattr(self.pipeline, component).config[entry]

    def from_pretrained(self, pipeline_class, **settings):
        """Loads a whole pipeline."""
        # Newer diffusers call it dtype, but take this too.
        settings |= {"torch_dtype": self.dtype, "local_files_only": self.choice.is_folder}
        return pipeline_class.from_pretrained(self.choice.source, **settings)

    def given(self, **names):
        """Options as settings of the pipeline, `option=setting`; those that are not given stay at its defaults."""
        values = {setting: getattr(self.options, option) for option, setting in names.items()}
        return {setting: value for setting, value in values.items() if value is not None}

    def sampling(self):
        """The options that most pipelines have under these names."""
        return self.given(
            height="height", width="width", steps="num_inference_steps", guidance_scale="guidance_scale"
        )  # fmt: skip
