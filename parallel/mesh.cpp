#include "parallel/mesh.h"

namespace ptq::parallel {

Mesh Mesh::make(Communicator& world, MeshShape shape) {
  require(world.size() == shape.data * shape.pipeline * shape.tensor, "the mesh does not have as many places as there are ranks");
  require(shape.expert > 0 && shape.data * shape.tensor % shape.expert == 0, "the expert ranks do not divide the data and tensor ranks");
  Mesh mesh;
  mesh.shape_ = shape;
  mesh.world_ = &world;
  mesh.tensor_rank_ = world.rank() % shape.tensor;
  mesh.pipeline_rank_ = world.rank() / shape.tensor % shape.pipeline;
  mesh.data_rank_ = world.rank() / (shape.tensor * shape.pipeline);
  const int d = mesh.data_rank_, p = mesh.pipeline_rank_, t = mesh.tensor_rank_;
  mesh.tensor_ = world.split(d * shape.pipeline + p, t);
  mesh.data_ = world.split(p * shape.tensor + t, d);
  mesh.pipeline_ = world.split(d * shape.tensor + t, p);
  mesh.stage_ = world.split(p, d * shape.tensor + t);
  const int in_stage = d * shape.tensor + t, groups = shape.data * shape.tensor / shape.expert;
  mesh.experts_ = world.split(p * groups + in_stage / shape.expert, in_stage);
  mesh.replicas_ = world.split(p * shape.expert + in_stage % shape.expert, in_stage);
  return mesh;
}

}  // namespace ptq::parallel
