"""The text that a container's directory is compressed against: the words that every directory repeats.

Small models count every byte; this saves some 500 of a directory's 800. It is part of the format: any change needs a
new version of the container. docs/FORMAT.md contains it too.
"""

DICTIONARY = """
"shape":[[96],[64],[128],[2,96],[512],[2,512],[4],[8],[3],[]],"type":["f32","f16","bf16"]{"all":0,"count":"tied_
head":false,"skips":true,"blocks.9.attn.c_q.weight","blocks.9.attn.c_k.weight","blocks.9.attn.c_v.weight","block
s.9.attn.proj.weight","blocks.9.mlp.fc.weight","blocks.9.mlp.proj.weight","blocks.0.attn_scale","blocks.0.mlp_sc
ale","blocks.0.resid_mix","blocks.0.attn.q_gain","blocks.1.attn_scale","blocks.1.mlp_scale","blocks.1.resid_mix"
,"blocks.1.attn.q_gain","lm_head.weight",{"coder":"range","matrices":{"name":["tok_emb.weight","blocks.0.attn.c_
q.weight","blocks.0.attn.c_k.weight","blocks.0.attn.c_v.weight","blocks.0.attn.proj.weight","blocks.0.mlp.fc.wei
ght","blocks.0.mlp.proj.weight","blocks.1.attn.c_q.weight","blocks.1.attn.c_k.weight","blocks.1.attn.c_v.weight"
,"blocks.1.attn.proj.weight","blocks.1.mlp.fc.weight","blocks.1.mlp.proj.weight"],"role":["embed","attn","attn",
"attn","attn","mlp","mlp","attn","attn","attn","attn","mlp","mlp"],"rows":[2048,96,96,96,96,288,96,96],"columns"
:[96,96,96,96,96,96,288,96],"resolution":{"all":4,"count":19},"trellis":{"all":8,"count":19},"segment":{"all":10
24,"count":19},"part":{"all":0,"count":19},"base":[82,75,87],"row_inertia":[0,5,4,3],"column_inertia":[0,4,3,1],
"row_scale_kind":[1,0,3],"row_scale_first":[-3,-14],"row_scale_base":[83,0,80],"column_scale_kind":[0,3,3],"colu
mn_scale_first":[-2,-12],"column_scale_base":[80,52]},"controls":{"name":["blocks.0.attn_scale","blocks.0.mlp_sc
ale","blocks.0.resid_mix","blocks.0.attn.q_gain"],"type":["f16","f16","f16","f16","f16","f16"],"shape":[[96],[96
],[2,96],[3],[96]]},"alphabets":[16,24,4],"memories":[6,15],"header":{"model":{"vocab_size":2048,"dim":96,"num_l
ayers":3,"num_heads":3,"num_kv_heads":3,"mlp_ratio":3.0,"mlp_slope":0.5,"bos_id":1,"embed_init_std":0.005,"qk_ga
in":5.25,"rope_base":10000.0,"rope_dims":0,"logit_softcap":30.0,"x0_mix":true,"parallel_from":-1,"loop_first":0,
"loop_last":-1,"loop_passes":1,"eval_loop_passes":0,"loop_from":0.0,"parallel_lanes":1,"norm_scale":false,"layer
_windows":[],"document_attention":false,"xsa_from":-1,"head_gate":"none","key_offset":false,"value_x0":false,"va
lue_embed_layers":[],"value_embed_dim":128,"skips":false,"smear_gate":false,"bigram_rows":0,"bigram_dim":64,"emb
ed_dim":0,"tied_head":true,"logit_bias":false,"backout":false,"future_weights":[],"future_until":0.5}}}
""".replace("\n", "").encode()
