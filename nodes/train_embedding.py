"""Quantize + ZO Textual Inversion: schema, and the few lines that run it."""

from collections.abc import Callable, Mapping

from comfy_api.latest import io
from torch import Tensor

from ..trainers.config import TokenConfig
from ..trainers.embedding_file import Embedding, as_file
from ..trainers.fingerprint import fingerprint
from ..trainers.memory import PhaseMeter
from ..trainers.photos import with_mirrored
from ..trainers.report import token_report
from ..trainers.saving import Product
from ..trainers.token_inversion import train_token
from ..trainers.token_prompts import embedding_prompt, training_captions
from . import host, host_embeddings, host_preview, host_saves, host_token, token_inputs
from .host_planned import budget, planned_run, preset
from .sockets import EmbeddingSocket
from .training import finished, latent_facts, models, seed, story

NAME = "token"  # of its saved runs


class ZOTextualInversion(io.ComfyNode):
    """Learn a word for your subject: one token vector, by forward passes alone through a quantised model."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="EdgeTune_ZOTextualInversion",
            display_name="Quantize + ZO Textual Inversion",
            category="training/EdgeTune",
            description=cls.__doc__,
            search_aliases=["train embedding", "textual inversion", "ZOODiP", "personalize", "low memory training"],
            inputs=[
                *models("Nothing in it changes: it is left", "The token is learnt through it; it is left as it was"),
                *token_inputs.token(),
                *token_inputs.learning(),
                *token_inputs.timesteps(),
                seed("token"),
                *token_inputs.more_steps(),
                *token_inputs.more_subspace(),
                *token_inputs.more_words(),
                *token_inputs.evaluation(),
                *host_saves.inputs(),
                *host_preview.inputs("a photo of embedding:NAME"),
                budget("candidates and quantization"),
                preset("method gradient where it fits", ""),
            ],
            outputs=[
                io.Clip.Output("clip", tooltip="The clip, which now knows the token, for CLIP Text Encode."),
                EmbeddingSocket.Output("embedding", tooltip="For Save Embedding."),
                io.String.Output("prompt", tooltip="How prompts call the token: embedding:NAME."),
                *story(),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls,
        model,
        clip,
        vae,
        subject,
        save_every=100,
        resume=host_saves.OFF,
        preview_every=0,
        preview_prompt="",
        **settings,
    ) -> io.NodeOutput:
        config, node_id = TokenConfig(**settings), cls.hidden.unique_id
        name, word = config.token, config.replaced_words or config.initial_word
        photos = with_mirrored(subject)
        texts = [training_captions(config.captions, photo.caption, word, name) for photo in photos]
        run = planned_run(node_id, config, model, subject, clip)
        config, low, meter = run.config, run.config.quantization, PhaseMeter(model.load_device)
        with run.saved(NAME, subject, save_every, resume, _so_far(name)) as saves:
            latents = host.encode_photos(model, vae, subject, meter)
            saves.check("encoded", latent_facts(latents))
            with host.trainable(model, low) as network, host_token.text_encoder(clip, name, low) as encoder:
                saves.check("clip", {"weights of the clip": fingerprint(encoder.module, [], {})[:16]})
                present = []  # a function that gives the token as it is
                drawn = preview_prompt or f"a photo of {embedding_prompt(name)}"
                conditions = host_token.live_conditions(model, network, encoder, latents[0], drawn, present)
                draw = host_preview.Drawer(model, vae, network, latents[0].shape, meter, conditions)
                previews = host_preview.Previews(preview_every, draw)
                trained = train_token(
                    network,
                    encoder.module,
                    host_token.token_examples(model, network, encoder, latents, texts, host.photo_weights(subject)),
                    encoder.initial_vectors(config.initial_word, config.num_vectors),
                    config,
                    meter,
                    run.on_step(previews),
                    host_token.free_bytes(network),
                    saves,
                    present.append,
                )
        given = run.circumstances(subject, network.waiting_bytes + encoder.waiting_bytes)
        report = token_report(config, trained, meter, given)
        learnt = host_embeddings.with_token(clip, name, trained.vectors)
        embedding = Embedding(name, trained.vectors, report)
        return finished(
            node_id, (learnt, embedding, embedding_prompt(name)), trained.steps, report, saves, previews.batch()
        )


def _so_far(name: str) -> Callable[[Mapping[str, Tensor]], Product]:
    """What makes a file of the vectors of a run that is not over."""
    return lambda vectors: as_file(Embedding(name, vectors), name)
