"""The settings of textual inversion as inputs of its node."""

from comfy_api.latest import io

from ..trainers.config import TOKEN_CHOICES


def token() -> list[io.Input]:
    """The new word."""
    return [
        io.String.Input(
            "token",
            default="my_subject",
            tooltip="Name of the new word: letters, digits, _ and -. Prompts call it embedding:NAME, with a space "
            "before and after.",
        ),
        io.String.Input(
            "initial_word",
            default="dog",
            tooltip="What the photos show, in the model's own words. The token starts as that word.",
        ),
    ]


def learning() -> list[io.Input]:
    """The rates of learning, and the network's precision."""
    return [
        io.Int.Input(
            "steps",
            default=30_000,
            min=1,
            max=1_000_000,
            tooltip="Updates of the token. 30,000 in the paper, of which many may not be needed: see patience.",
        ),
        io.Float.Input(
            "learning_rate",
            default=5e-3,
            min=1e-6,
            max=10.0,
            step=1e-6,
            tooltip="Of Adam. 0.005 in the paper, 0.01 in its authors' script.",
        ),
        io.Combo.Input(
            "quantization",
            options=list(TOKEN_CHOICES["quantization"]),
            default="int8",
            tooltip="How the weights of model and clip are held while steps run. int8 halves the memory of 16 bit; "
            "int4 takes a quarter and costs quality. Afterwards both are as they were.",
        ),
        io.Int.Input(
            "zo_perturbations",
            default=2,
            min=1,
            max=256,
            tooltip="Random directions a step averages over, one forward pass each and one for all. 2 in the paper.",
        ),
        io.Float.Input(
            "zo_epsilon",
            default=1e-3,
            min=1e-6,
            max=1.0,
            step=1e-6,
            tooltip="How far a step moves the token to feel the slope. 0.001 in the paper, which tried 0.01 and 0.0001 "
            "as well.",
        ),
    ]


def timesteps() -> list[io.Input]:
    """Where timesteps are drawn from."""
    text = (
        "Timesteps are drawn from t_low up to t_high, this one left out. 500 and 900 in the paper; 0 and 1000 is all."
    )
    return [
        io.Int.Input("t_low", default=500, min=0, max=999, tooltip=text),
        io.Int.Input("t_high", default=900, min=1, max=1000, tooltip=text),
    ]


def more_steps() -> list[io.Input]:
    """Advanced: of a step."""
    return [
        _choice(
            "method",
            "zo",
            "zo takes forward passes alone, as the paper does. gradient is plain textual inversion by backpropagation, "
            "to compare: more memory, far fewer steps.",
        ),
        _choice(
            "difference",
            "forward",
            "forward compares each moved token with the token, as the paper does. central moves it to both sides: more "
            "exact, almost twice the passes.",
        ),
        _choice(
            "candidates",
            "auto",
            "The tokens of a step as one batch, or one by one, which needs less memory. auto looks at what is free. "
            "The result is the same but for rounding.",
        ),
    ]


def more_subspace() -> list[io.Input]:
    """Advanced: of the subspace of past tokens."""
    return [
        _choice(
            "subspace",
            "published",
            "What the token's past says about where to go. published removes directions from the gradient, as the "
            "paper's authors do; confined from all the token does; off removes none.",
        ),
        io.Int.Input(
            "subspace_size",
            default=128,
            min=2,
            max=4096,
            optional=True,
            advanced=True,
            tooltip="Past tokens that are looked at, and steps from one look to the next. 128 in the paper.",
        ),
        io.Float.Input(
            "subspace_nu",
            default=1e-3,
            min=1e-6,
            max=0.5,
            step=1e-6,
            optional=True,
            advanced=True,
            tooltip="Share of the past's variance that is given up. 0.001 in the paper.",
        ),
        io.Float.Input(
            "subspace_outside",
            default=0.5,
            min=0.0,
            max=1.0,
            step=0.01,
            optional=True,
            advanced=True,
            tooltip="With confined: factor on directions the token never took.",
        ),
    ]


def more_words() -> list[io.Input]:
    """Advanced: of the token and of captions."""
    return [
        io.Int.Input(
            "num_vectors",
            default=1,
            min=1,
            max=64,
            optional=True,
            advanced=True,
            tooltip="Vectors that make up the token. More can hold more, and leave less room in the prompt.",
        ),
        _choice(
            "captions",
            "templates",
            "templates: 27 phrases such as a bright photo of the TOKEN. one caption: a photo of a TOKEN. photo "
            "captions: those of the subject, with the token in the place of replaced_words.",
        ),
        io.String.Input(
            "replaced_words",
            default="",
            optional=True,
            advanced=True,
            tooltip="With photo captions: the words the token stands for, such as sks dog. Empty: initial_word.",
        ),
    ]


def evaluation() -> list[io.Input]:
    """Advanced: of losses under fixed noise, which choose the token."""
    return [
        io.Float.Input(
            "weight_decay",
            default=1e-2,
            min=0.0,
            max=1.0,
            step=1e-4,
            optional=True,
            advanced=True,
            tooltip="Of AdamW, with method gradient.",
        ),
        io.Int.Input(
            "eval_every",
            default=100,
            min=0,
            max=100_000,
            optional=True,
            advanced=True,
            tooltip="Steps between two looks at the loss under noise that stays the same. The best token is kept. 0 "
            "turns it off and keeps the last.",
        ),
        io.Int.Input(
            "eval_samples",
            default=8,
            min=1,
            max=1024,
            optional=True,
            advanced=True,
            tooltip="Forward passes of such a look.",
        ),
        io.Int.Input(
            "patience",
            default=20,
            min=0,
            max=100_000,
            optional=True,
            advanced=True,
            tooltip="Looks in a row that are no new best, then the run stops. 0 never stops early.",
        ),
    ]


def _choice(name: str, default: str, tooltip: str) -> io.Input:
    options = list(TOKEN_CHOICES[name])
    return io.Combo.Input(name, options=options, default=default, optional=True, advanced=True, tooltip=tooltip)
