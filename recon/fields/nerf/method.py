"""What nerfstudio finds by its entry point: the method `endo-nerf`."""

from __future__ import annotations

import torch
from nerfstudio.cameras.camera_optimizers import CameraOptimizerConfig
from nerfstudio.configs.base_config import LocalWriterConfig, LoggingConfig, MachineConfig, ViewerConfig
from nerfstudio.pipelines.base_pipeline import VanillaPipelineConfig
from nerfstudio.plugins.types import MethodSpecification

from recon.fields.nerf.model import EndoNerfModelConfig
from recon.fields.nerf.scene_data import SceneDataManagerConfig
from recon.fields.nerf.settings import NerfSettings
from recon.fields.nerf.trainer import EndoTrainerConfig, optimizer_groups

NAME = "endo-nerf"
_RAYS_PER_CHUNK = 4096


def trainer_config(settings: NerfSettings, device: str) -> EndoTrainerConfig:
    """The method at these settings; `device` is "cpu" or "cuda". No viewer is opened: nerfstudio's listens on every address."""
    grid = {"log2_hashmap_size": settings.log2_hashmap_size - 2, "num_levels": 5, "max_res": settings.max_resolution // 2}
    model = EndoNerfModelConfig(
        eval_num_rays_per_chunk=_RAYS_PER_CHUNK,
        disable_scene_contraction=True,
        proposal_initial_sampler="uniform",
        num_proposal_iterations=1,
        num_proposal_samples_per_ray=(settings.num_proposal_samples,),
        num_nerf_samples_per_ray=settings.num_samples,
        proposal_net_args_list=[{"hidden_dim": 16, "use_linear": False, **grid}],
        proposal_warmup=settings.num_steps // 4,
        proposal_weights_anneal_max_num_iters=max(1, settings.num_steps // 10),
        use_appearance_embedding=False,
        camera_optimizer=CameraOptimizerConfig(mode="off"),
        log2_hashmap_size=settings.log2_hashmap_size,
        num_levels=settings.num_levels,
        max_res=settings.max_resolution,
        deformation_width=settings.deformation_width,
        deformation_layers=settings.deformation_layers,
        depth_sigma=settings.depth_sigma,
    )
    never = settings.num_steps + 1
    return EndoTrainerConfig(
        method_name=NAME,
        max_num_iterations=settings.num_steps,
        steps_per_save=settings.steps_per_save,
        steps_per_eval_batch=never,
        steps_per_eval_image=never,
        steps_per_eval_all_images=never,
        mixed_precision=False,
        machine=MachineConfig(seed=settings.seed, device_type=device),
        logging=LoggingConfig(steps_per_log=100, local_writer=LocalWriterConfig(enable=True), profiler="none"),
        viewer=ViewerConfig(websocket_host="127.0.0.1", quit_on_train_completion=True),
        vis="tensorboard",
        pipeline=VanillaPipelineConfig(
            datamanager=SceneDataManagerConfig(rays_per_step=settings.rays_per_step, seed=settings.seed), model=model
        ),
        optimizers=optimizer_groups(settings.learning_rate, settings.num_steps),
    )


METHOD = MethodSpecification(
    config=trainer_config(NerfSettings(), "cuda" if torch.cuda.is_available() else "cpu"),
    description="Nerfacto under a deformation, for tissue that moves: rays avoid instruments, depth says where they end.",
)
