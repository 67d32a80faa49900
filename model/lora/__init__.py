# SPDX-License-Identifier: Apache-2.0
"""LoRA files, fused into the weights of a checkpoint while those are read: no second copy of the model is made.

- spec: what a user asks for, a file and its strength
- keys: from a file's keys to modules, in every layout
- peft_scales: alpha / rank where the tensors do not say
- tensors: an opened file
- lora_file: the file checked against a model, and every key of it accounted for
- report: what was used, and what not
- changes: the arithmetic on one parameter
- fused: a CheckpointReader that gives the changed weights
"""
