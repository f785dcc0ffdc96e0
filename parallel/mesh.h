#pragma once
// The ranks as a grid data × pipeline × tensor and the groups along its axes. rank = (data · P + pipeline) · T + tensor. Routed experts are
// spread over runs of `expert` neighbours among the data × tensor ranks of a stage.

#include <memory>

#include "parallel/communicator.h"

namespace ptq::parallel {

struct MeshShape {
  int data = 1, pipeline = 1, tensor = 1;
  int expert = 1;  ///< divides data · tensor
};

class Mesh {
 public:
  /// Collective over `world`, whose size is data · pipeline · tensor. Keeps a reference to it.
  static Mesh make(Communicator& world, MeshShape shape);

  const MeshShape& shape() const { return shape_; }
  int data_rank() const { return data_rank_; }
  int pipeline_rank() const { return pipeline_rank_; }
  int tensor_rank() const { return tensor_rank_; }

  Communicator& world() const { return *world_; }
  Communicator& tensor() const { return *tensor_; }      ///< same data and pipeline rank
  Communicator& data() const { return *data_; }          ///< same pipeline and tensor rank
  Communicator& pipeline() const { return *pipeline_; }  ///< same data and tensor rank
  Communicator& stage() const { return *stage_; }        ///< same pipeline rank; rank in it = data · T + tensor
  Communicator& experts() const { return *experts_; }    ///< the ranks of the stage that split the experts among them
  Communicator& replicas() const { return *replicas_; }  ///< the ranks of the stage that hold the same experts

 private:
  MeshShape shape_;
  int data_rank_ = 0, pipeline_rank_ = 0, tensor_rank_ = 0;
  Communicator* world_ = nullptr;
  std::unique_ptr<Communicator> tensor_, data_, pipeline_, stage_, experts_, replicas_;
};

}  // namespace ptq::parallel
