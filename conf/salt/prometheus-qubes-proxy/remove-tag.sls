# In dom0: takes tag.sls back.
{% from 'prometheus-qubes-proxy/map.jinja' import settings with context %}
{% for qube in settings.watch %}
prometheus-qubes-proxy-remove-tag-{{ qube }}:
  qvm.vm:
    - name: {{ qube }}
    - tags:
      - del:
        - {{ settings.tag }}
{% endfor %}
