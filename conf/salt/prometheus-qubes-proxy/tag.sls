# In dom0: the tag of the qubes to watch.
{% from 'prometheus-qubes-proxy/map.jinja' import settings with context %}
{% for qube in settings.watch %}
prometheus-qubes-proxy-tag-{{ qube }}:
  qvm.vm:
    - name: {{ qube }}
    - tags:
      - add:
        - {{ settings.tag }}
{% endfor %}
