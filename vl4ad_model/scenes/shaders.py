"""GLSL: one program that shades every procedural material with sun, shadow, sky light and fog, and writes exact ids."""

COMMON = """
#version 330 core
float hash(vec3 p){ p = fract(p*0.3183099+.1); p *= 17.0; return fract(p.x*p.y*p.z*(p.x+p.y+p.z)); }
float noise(vec3 x){
  vec3 i=floor(x), f=fract(x); f=f*f*(3.0-2.0*f);
  return mix(mix(mix(hash(i),hash(i+vec3(1,0,0)),f.x),mix(hash(i+vec3(0,1,0)),hash(i+vec3(1,1,0)),f.x),f.y),
             mix(mix(hash(i+vec3(0,0,1)),hash(i+vec3(1,0,1)),f.x),mix(hash(i+vec3(0,1,1)),hash(i+vec3(1,1,1)),f.x),f.y),f.z);
}
float fbm(vec3 p){ return 0.5*noise(p)+0.3*noise(p*2.7+3.1)+0.2*noise(p*6.9+7.7); }
"""

VERTEX = (
    COMMON
    + """
in vec3 in_position; in vec3 in_normal;
in vec4 in_row0; in vec4 in_row1; in vec4 in_row2;
in vec3 in_color; in vec3 in_color2;
in vec4 in_look;   // material, texture, gloss, emission
in vec4 in_tag;    // displacement, class, instance, seed
uniform mat4 view_projection; uniform mat4 shadow_matrix; uniform mat4 top_matrix; uniform vec3 bend;
invariant gl_Position;
out vec3 unit; flat out vec3 side; out vec3 top; out vec3 world; out vec3 local; out vec3 normal; out vec3 color;
    out vec3 color2; out vec4 look; out float seed; out vec4 shadow;
flat out uvec2 ids;
void main(){
  vec3 p=in_position;
  if(in_tag.x>0.0) p*=1.0+in_tag.x*(2.0*fbm(p*5.0+in_tag.w)-1.0);
  vec3 w=vec3(dot(in_row0,vec4(p,1)),dot(in_row1,vec4(p,1)),dot(in_row2,vec4(p,1)));
  vec3 size=vec3(length(vec3(in_row0.x,in_row1.x,in_row2.x)),length(vec3(in_row0.y,in_row1.y,in_row2.y)),
                 length(vec3(in_row0.z,in_row1.z,in_row2.z)));
  vec3 n=in_normal/size;
  vec3 c0=vec3(in_row0.x,in_row1.x,in_row2.x)/size.x, c1=vec3(in_row0.y,in_row1.y,in_row2.y)/size.y,
       c2=vec3(in_row0.z,in_row1.z,in_row2.z)/size.z;
  unit=in_position; side=in_normal;
  normal=normalize(c0*n.x+c1*n.y+c2*n.z);
  local=p*size; world=w;
  float y=max(w.y,0.0);
  w.x+=bend.x*y*y; w.z+=bend.y*y*y+bend.z*y;   // curves and hills
  color=in_color; color2=in_color2; look=in_look; seed=in_tag.w;
  ids=uvec2(uint(in_tag.y+.5),uint(in_tag.z+.5));
  shadow=shadow_matrix*vec4(w,1); top=(top_matrix*vec4(w,1)).xyz*.5+.5;
  gl_Position=view_projection*vec4(w,1);
}
"""
)

_INPUTS = """
in vec3 unit; flat in vec3 side; in vec3 top; in vec3 world; in vec3 local; in vec3 normal; in vec3 color; in vec3 color2;
    in vec4 look; in float seed; in vec4 shadow;
flat in uvec2 ids;
uniform vec3 sun_direction; uniform vec3 sun_color; uniform vec3 sky_color; uniform vec3 ground_color; uniform vec3 fog_color;
uniform float fog_density; uniform vec3 eye; uniform sampler2DShadow shadow_map; uniform sampler2D top_map;
    uniform float wetness; uniform float snow;
layout(location=0) out vec4 out_color; layout(location=1) out uvec2 out_ids;
vec2 plane(){ vec3 a=abs(normal); return a.x>a.y&&a.x>a.z?world.yz:(a.y>a.z?world.xz:world.xy); }
float sun_reaches(float nl){
  vec3 s=shadow.xyz/shadow.w*.5+.5; if(any(lessThan(s,vec3(0)))||any(greaterThan(s,vec3(1)))) return 1.0;
  float lit=0.0, b=.0015+.003*(1.-nl), e=1./1024.;
  for(int i=-1;i<=1;i+=2)for(int j=-1;j<=1;j+=2) lit+=.25*texture(shadow_map,vec3(s.xy+vec2(i,j)*e*.7,s.z-b));
  return lit; }
// How much of the sky a point sees: what stands close above it darkens it, as seen from the zenith (contact shadows).
float sky_reaches(float up){
  if(up<.3) return .62+.38*smoothstep(0.,.9,world.z);
  if(any(lessThan(top.xy,vec2(0)))||any(greaterThan(top.xy,vec2(1)))) return 1.0;
  float hidden=0.0;
  for(int i=0;i<8;i++){ float a=float(i)*.785+.3; float r=(i%2==0?.3:.75)/84.;
    float above=(top.z-texture(top_map,top.xy+vec2(cos(a),sin(a))*r).r)*80.; if(above>.07) hidden+=exp(-above*.38); }
  return 1.0-.78*hidden/8.; }
void finish(vec3 albedo, vec3 n, float gloss, float glow, float shine){
  float up=clamp(n.z,0.,1.); albedo=mix(albedo,vec3(.88,.9,.94),snow*smoothstep(.35,.8,up*(.6+.7*fbm(world*.8))));
  vec3 v=normalize(eye-world); float nl=max(dot(n,sun_direction),0.0), lit=nl>0.?sun_reaches(nl):0.;
  float open=sky_reaches(normal.z);
  vec3 light=sun_color*nl*lit+mix(ground_color,sky_color,.5+.5*n.z)*open;
  vec3 h=normalize(v+sun_direction); float fresnel=pow(1.-max(dot(n,v),0.),4.);
  vec3 reflected=reflect(-v,n); vec3 sky=mix(ground_color*.6,sky_color*1.2,smoothstep(-.1,.4,reflected.z));
  vec3 c=albedo*light+gloss*(sky*(.08+.6*fresnel)*open+sun_color*lit*pow(max(dot(n,h),0.),60.)*.8);
  c+=color*shine*1.6+vec3(1.,.82,.5)*glow;
  float d=length(eye-world); c=mix(fog_color,c,exp(-fog_density*d));
  out_color=vec4(c,1); out_ids=ids;
}
"""

FRAGMENT = (
    COMMON
    + _INPUTS
    + """
void main(){
  int m=int(look.x+.5); float t=look.y; vec3 n=normalize(normal); vec3 albedo=color; float gloss=look.z; float glow=0.0;
  vec3 q=local+seed; vec2 uv=plane();
  float grime=fbm((ids.x<11u?world:q)*.7+seed), fine=fbm(q*9.0*t);   // what moves must not slide through its own texture
  if(m==0) albedo*=0.85+0.3*fine;
  else if(m==1){ float g=noise(world*38.0); float patches=fbm(world*vec3(.35,.12,.35));
    float track=fbm(vec3(world.x*1.3,world.y*.02,seed));
    albedo*=0.72+0.36*g*0.6+0.5*(patches-.4)+.25*(track-.5); float crack=abs(fbm(world*vec3(1.1,.6,1.1))-.5);
    albedo*=crack<.004*smoothstep(.45,.7,fbm(world*.2+9.))?0.7:1.0; gloss+=wetness*(.3+.7*smoothstep(.35,.6,patches)); }
  else if(m==2){ vec2 s=uv*vec2(.55,.36)*t; vec2 f=fract(s), c=floor(s);
    float r=hash(vec3(c,seed)), kind=hash(vec3(seed,1.3,7.7)), k=hash(vec3(seed,4.1,2.3));
    vec2 low=vec2(mix(.1,.3,k),mix(.12,.3,fract(k*7.))), high=vec2(1.-low.x,mix(.78,.9,fract(k*13.)));
    if(kind<.3){ vec2 b=uv*vec2(4.2,13.0); b.x+=.5*mod(floor(b.y),2.0); vec2 e=fract(b); bool mortar=e.x<.06||e.y<.12;
      albedo=mortar?color*.8+.12:color*(.72+.45*hash(vec3(floor(b),seed))); }
    else if(kind<.45) albedo=color*((f.x<.02||f.y<.03)?.7:.92+.16*hash(vec3(c,seed+2.)));
    else albedo=color*(.82+.3*noise(vec3(uv.x*2.5,uv.y*.25,seed))*smoothstep(0.,1.,fract(k*5.))+.1*noise(vec3(uv*7.0,seed)));
    if(abs(n.z)<.5&&f.x>low.x&&f.x<high.x&&f.y>low.y&&f.y<high.y){
      vec2 g=(f-low)/(high-low); bool frame=g.x<.05||g.x>.95||g.y<.04||g.y>.95||abs(g.x-.5)<.025||(k>.5&&abs(g.y-.68)<.02);
      if(frame) albedo=k>.35?vec3(.62):color*.25;
      else { bool curtain=r>.62&&(abs(g.x-.5)>mix(.18,.4,fract(r*9.))||g.y>.85);
    albedo=curtain?vec3(.5,.47,.42)*(.6+.5*fract(r*17.)):color2*(.5+r);
        albedo*=.35+.65*smoothstep(1.,.78,g.y); gloss=curtain?.35:.9; glow=look.w*(r>.55?1.0:0.0); } }
    else { if(f.x>low.x-.03&&f.x<high.x+.03){ if(f.y<low.y&&f.y>low.y-.05) albedo*=1.25;
    else if(f.y<low.y-.05&&f.y>low.y-.1) albedo*=.72; }
      if(fract(k*3.)>.7&&f.y>low.y&&f.y<high.y&&((f.x>low.x-.12&&f.x<low.x-.01)||(f.x<high.x+.12&&f.x>high.x+.01)))
        albedo=vec3(.1,.16,.12)*(.6+fract(k*29.))*(fract(f.y*40.)<.3?.6:1.); } }
  else if(m==3){ vec2 s=uv*vec2(4.5,13.0)*.6*t; s.x+=.5*mod(floor(s.y),2.0); vec2 f=fract(s);
    bool mortar=f.x<.06||f.y<.12; albedo=mortar?color2:color*(.75+.5*hash(vec3(floor(s),seed))); }
  else if(m==5) albedo*=.95+.1*grime;
  else if(m==6) albedo=color*(.7+.6*fbm((ids.x<11u?world:q)*.4));
  else if(m==7){ float g=noise(vec3(q.x*2.0,q.y*2.0,q.z*2.0)*vec3(8,1.2,8)*t); albedo*=.65+.6*g; }
  else if(m==8){ float s=fract((local.x+local.z*.6)*t); albedo=s<.5?color:color2; }
  else if(m==10){ vec2 s=uv*1.1*t; s.x+=.5*mod(floor(s.y),2.0)*step(.5,fract(seed*3.7)); vec2 f=fract(s);
    albedo=mix(color,color2,step(.55,hash(vec3(floor(s),seed)))*.6);
    if(f.x<.03||f.y<.03) albedo*=.72; albedo*=.85+.3*noise(vec3(uv*15.0,1)); gloss+=wetness*.4; }
  else if(m==11){ vec2 e=abs(side.z)>.7?unit.xy:(abs(side.x)>.7?unit.yz:unit.xz);
    float rows=1.+floor(hash(vec3(seed,2.,5.))*2.9);
    vec2 g=(e+.5)*vec2(max(5.,6.*t),rows); float glyph=hash(vec3(floor(g),seed)); vec2 f=fract(g);
    bool ink=glyph>.25&&f.y>.24&&f.y<.76&&f.x>.16&&f.x<.84&&abs(e.x)<.4&&abs(e.y)<.42&&(fract(glyph*7.)>.4||abs(f.x-.5)>.12)&&
    (fract(glyph*13.)>.3||f.y>.45);
    bool rim=fract(seed*1.7)>.5&&max(abs(e.x),abs(e.y))>.45&&max(abs(e.x),abs(e.y))<.48; albedo=ink||rim?color2:color; }
  else if(m==12){ float w=.5+.5*sin(q.x*160.0+q.y*90.)*sin(q.z*160.0); albedo*=.7+.35*fine+.12*w+.2*(fbm(q*3.)-.5); }
  else if(m==13){ float b=noise(world*vec3(22.,22.,1.))*.6+noise(world*3.)*.4, wide=fbm(world*.16+seed);
    albedo=mix(color2,color,b+.35*(wide-.5));
    albedo=mix(albedo,vec3(.34,.29,.16)*dot(color,vec3(1.)),.75*smoothstep(.52,.68,fbm(world*.45+seed*3.)));
    n=normalize(n+.5*vec3(noise(world*9.)-.5,noise(world*9.+4.)-.5,0.)); }
  else if(m==14){ albedo*=.8+.35*noise(vec3(q.xy*3.0,q.z*40.0)); gloss=max(gloss,.5); }
  else if(m==15){ float f=fbm(q*vec3(18,18,40)); albedo=mix(color,color2,smoothstep(.55,.75,fbm(q*2.3))*.7)*(.65+.7*f); }
  albedo*=.8+.35*grime;
  finish(albedo,n,gloss,glow,(m==9||m!=2)?look.w:0.);
}
"""
)

# Leaves: clumps with ragged edges and holes; a program of its own, since `discard` switches early depth tests off.
FOLIAGE_FRAGMENT = (
    COMMON
    + _INPUTS
    + """
void main(){
  float t=look.y; vec3 n=normalize(normal), q=local+seed; vec3 v=normalize(eye-world);
  float clump=noise(q*5.0*t), leaf=noise(q*17.0*t), edge=abs(dot(n,v));
  if(look.w<.5&&.55*clump+.45*leaf<.78-.9*edge-look.w) discard;   // emission: 1 flat hedges without a ragged edge, below 0 leafless
  vec3 albedo=mix(color2,color*1.3,smoothstep(.25,.75,.55*clump+.45*leaf));
  albedo*=mix(.45,1.,smoothstep(-.7,.6,n.z))*mix(.7,1.2,noise(q*1.3));
  albedo=mix(albedo,albedo.grb*vec3(1.15,1.,.8),.25*noise(q*2.1+9.));
  n=normalize(n+1.5*vec3(noise(q*11.0*t)-.5,noise(q*11.0*t+5.)-.5,noise(q*11.0*t+9.)-.5));
  finish(albedo,n,look.z*.5,0.,0.);
}
"""
)

SKY_VERTEX = """
#version 330 core
in vec2 in_corner; out vec2 corner; void main(){ corner=in_corner; gl_Position=vec4(in_corner,.9999999,1); }
"""
SKY_FRAGMENT = (
    COMMON
    + """
in vec2 corner; uniform mat4 inverse_view; uniform vec3 sky_top; uniform vec3 sky_low; uniform vec3 cloud_color;
    uniform float clouds;
uniform vec3 sun_direction; uniform vec3 sun_color; uniform vec3 fog_color; uniform float fog_density; uniform float seed;
layout(location=0) out vec4 out_color; layout(location=1) out uvec2 out_ids;
void main(){
  vec4 far=inverse_view*vec4(corner,1,1); vec3 d=normalize(far.xyz/far.w); float e=max(d.z,0.);
  vec3 c=mix(sky_low,sky_top,1.-exp(-3.*e)); vec2 p=d.xy/(e+.12);
  float f=fbm(vec3(p*.9,seed))*.6+fbm(vec3(p*2.6,seed+3.))*.4, thick=smoothstep(1.-clouds,1.35-clouds,f);
  c=mix(c,cloud_color*mix(1.12,.72,thick*fbm(vec3(p*1.7,seed+7.))),smoothstep(0.,.6,thick)*smoothstep(0.,.12,e+.03));
  c+=sun_color*.25*pow(max(dot(d,sun_direction),0.),200.);
  c=mix(fog_color,c,exp(-fog_density*25./(e+.08)));
  out_color=vec4(c,1); out_ids=uvec2(10u,0u);
}
"""
)
DEPTH_FRAGMENT = """
#version 330 core
void main(){}
"""
CUTOUT_VERTEX = """
#version 330 core
in vec2 in_corner; in vec4 in_place; in vec4 in_look; in vec2 in_ids;   // place: x y z yaw; look: width height layer brightness
uniform mat4 view_projection; uniform vec3 bend; out vec3 uv; out float brightness; out vec3 world; flat out uvec2 ids;
void main(){
  vec3 w=in_place.xyz+vec3(cos(in_place.w),sin(in_place.w),0)*in_corner.x*.5*in_look.x+vec3(0,0,1)*(in_corner.y*.5+.5)*in_look.y;
  world=w; float y=max(w.y,0.); w.x+=bend.x*y*y; w.z+=bend.y*y*y+bend.z*y;
  uv=vec3(in_corner.x*.5+.5,.5-in_corner.y*.5,in_look.z); brightness=in_look.w; ids=uvec2(uint(in_ids.x+.5),uint(in_ids.y+.5));
  gl_Position=view_projection*vec4(w,1);
}
"""
CUTOUT_FRAGMENT = """
#version 330 core
in vec3 uv; in float brightness; in vec3 world; flat in uvec2 ids; uniform sampler2DArray pictures; uniform vec3 light;
    uniform vec3 eye;
uniform vec3 fog_color; uniform float fog_density;
layout(location=0) out vec4 out_color; layout(location=1) out uvec2 out_ids;
void main(){ vec4 c=texture(pictures,uv); if(c.a<.5) discard; vec3 l=c.rgb/max(c.a,.01)*light*brightness;
  out_color=vec4(mix(fog_color,l,exp(-fog_density*length(eye-world))),1); out_ids=ids; }
"""
