"""Load Pocket Model: the small model that comes with the pack, for a first try without a download."""

from comfy_api.latest import io

from .host_pocket import load_pocket


class LoadPocketModel(io.ComfyNode):
    """Load the small Stable Diffusion that comes with the pack: 128 px pictures of simple objects in seconds, also
    without a GPU. To try training and sampling with nothing downloaded."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="EdgeTune_LoadPocketModel",
            display_name="Load Pocket Model",
            category="training/EdgeTune",
            description=cls.__doc__,
            search_aliases=["load checkpoint", "demo model", "small model", "tiny model", "no download"],
            inputs=[],
            outputs=[
                io.Model.Output("model", tooltip="The U-Net. It draws at 128 x 128 pixels."),
                io.Clip.Output("clip", tooltip="The text encoder, with the tokens of SD 1.x."),
                io.Vae.Output("vae", tooltip="The autoencoder, of TAESD's shape."),
            ],
        )

    @classmethod
    def execute(cls) -> io.NodeOutput:
        return io.NodeOutput(*load_pocket())
