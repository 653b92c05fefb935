package test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/cloudfoundry-community/locker/internal/lockertest"
)

// This file does with the examples for Kubernetes what can be done without a
// cluster: it runs the image as the examples' pods would.

// pod is what a StatefulSet or a Deployment says of its pods. A member that is not here is one
// that this test does not know to be right.
type pod struct {
	AutomountServiceAccountToken, EnableServiceLinks *bool
	TopologySpreadConstraints                        []struct {
		MaxSkew                        int
		TopologyKey, WhenUnsatisfiable string
		LabelSelector                  struct{ MatchLabels labels }
	}
	SecurityContext struct {
		RunAsNonRoot                   bool
		RunAsUser, RunAsGroup, FSGroup int
		FSGroupChangePolicy            string
		SeccompProfile                 struct{ Type string }
	}
	Containers []struct {
		Name, Image string
		EnvFrom     []struct{ SecretRef struct{ Name string } }
		Env         []struct {
			Name, Value string
			ValueFrom   struct{ FieldRef struct{ FieldPath string } }
		}
		Ports []struct {
			Name          string
			ContainerPort int
		}
		ReadinessProbe struct {
			HTTPGet       *struct{ Path, Port string }
			PeriodSeconds int
		}
		LivenessProbe struct{ TCPSocket *struct{ Port string } }
		Resources     struct {
			Requests struct{ CPU, Memory string }
			Limits   struct{ Memory string }
		}
		SecurityContext struct {
			AllowPrivilegeEscalation *bool
			ReadOnlyRootFilesystem   bool
			Capabilities             struct{ Drop []string }
		}
		VolumeMounts []struct{ Name, MountPath string }
	}
}

type labels map[string]string

// resources are a Service, a StatefulSet or a Deployment, whose members have different
// names.
type resources struct {
	APIVersion, Kind string
	Metadata         struct {
		Name   string
		Labels labels
	}
	Spec struct {
		Ports []struct {
			Name       string
			Port       int
			TargetPort string
		}
		Selector    json.RawMessage
		ServiceName string
		Replicas    int
		Template    struct {
			Metadata struct{ Labels labels }
			Spec     pod
		}
		VolumeClaimTemplates []struct {
			Metadata struct{ Name string }
			Spec     struct {
				AccessModes []string
				Resources   struct{ Requests struct{ Storage string } }
			}
		}
	}
}

const single, several = "examples/kubernetes/locker.yml", "examples/kubernetes/several.yml"

// readResources reads an example strictly.
func readResources(t *testing.T, file string) (service, pods resources) {
	t.Helper()
	need(t, "ruby")
	both, docs := []*resources{&service, &pods}, strings.Split(lockertest.Read(t, file), "\n---\n")
	if len(docs) != len(both) {
		t.Fatalf("%d documents", len(docs))
	}
	for i, doc := range docs {
		var plain json.RawMessage
		unyaml(t, doc, &plain)
		strict := json.NewDecoder(bytes.NewReader(plain))
		strict.DisallowUnknownFields()
		if err := strict.Decode(both[i]); err != nil {
			t.Fatal(err)
		}
	}
	return service, pods
}

// What refers to something in an example refers to what is there, a full disk
// keeps clients away without a restart, and the pods are restricted.
func TestKubernetes(t *testing.T) {
	for _, file := range []string{single, several} {
		t.Run(file, func(t *testing.T) {
			service, pods := readResources(t, file)
			wantSelected(t, service, pods)
			wantRestricted(t, pods.Spec.Template.Spec)
			locker := pods.Spec.Template.Spec.Containers[0]
			port := locker.Ports[0].Name
			if service.Spec.Ports[0].TargetPort != port || service.Spec.Ports[0].Port != 8910 || locker.Ports[0].ContainerPort != 8910 {
				t.Errorf("ports %+v, %+v", service.Spec.Ports, locker.Ports)
			}
			if get, tcp := locker.ReadinessProbe.HTTPGet, locker.LivenessProbe.TCPSocket; get == nil || get.Path != "/health" || get.Port != port || tcp == nil || tcp.Port != port {
				t.Errorf("probes %+v %+v", get, tcp)
			}
			released, _, _ := strings.Cut(strings.SplitN(lockertest.Read(t, "CHANGELOG.md"), "\n## ", 2)[1], ",")
			if want := "registry.example/locker:" + released; locker.Image != want || locker.EnvFrom[0].SecretRef.Name != "locker" {
				t.Errorf("the image is %s, want %s; %+v", locker.Image, want, locker.EnvFrom)
			}
		})
	}
}

func wantSelected(t *testing.T, service, pods resources) {
	t.Helper()
	var selected labels
	var matched struct{ MatchLabels labels }
	if json.Unmarshal(service.Spec.Selector, &selected) != nil || json.Unmarshal(pods.Spec.Selector, &matched) != nil {
		t.Fatalf("selectors %s, %s", service.Spec.Selector, pods.Spec.Selector)
	}
	all := []string{fmt.Sprint(selected), fmt.Sprint(matched.MatchLabels), fmt.Sprint(pods.Spec.Template.Metadata.Labels)}
	for _, spread := range pods.Spec.Template.Spec.TopologySpreadConstraints {
		all = append(all, fmt.Sprint(spread.LabelSelector.MatchLabels))
	}
	if len(slices.Compact(all)) != 1 || len(selected) == 0 {
		t.Errorf("labels and selectors %q", all)
	}
}

func wantRestricted(t *testing.T, p pod) {
	t.Helper()
	about, locker := p.SecurityContext, p.Containers[0].SecurityContext
	if !about.RunAsNonRoot || about.RunAsUser == 0 || about.SeccompProfile.Type != "RuntimeDefault" || locker.AllowPrivilegeEscalation == nil || *locker.AllowPrivilegeEscalation ||
		!locker.ReadOnlyRootFilesystem || !slices.Equal(locker.Capabilities.Drop, []string{"ALL"}) {
		t.Errorf("%+v, %+v", about, locker)
	}
}

// runPod starts the image under what an example says of its pods.
func runPod(t *testing.T, p pod, options ...string) *container {
	t.Helper()
	about, locker := p.SecurityContext, p.Containers[0]
	id, err := docker(t, nil, slices.Concat([]string{"run", "--detach", "--env=AUTH_USER=test", "--env=AUTH_PASS=test"}, hardened, options, []string{
		fmt.Sprintf("--user=%d:%d", about.RunAsUser, about.RunAsGroup), "--memory=" + strings.ToLower(strings.TrimSuffix(locker.Resources.Limits.Memory, "i")), serverImage})...)
	if err != nil {
		t.Fatal(err)
	}
	c := &container{t: t, id: strings.TrimSpace(id)}
	t.Cleanup(c.remove)
	return c
}

// The StatefulSet's pod takes locks, on a volume that belongs to root and the
// pod's group, as a kubelet mounts it. On a full disk it is not ready, but alive.
func TestReleasedKubernetes(t *testing.T) {
	loadServerImage(t)
	_, set := readResources(t, single)
	p := set.Spec.Template.Spec
	mount, claim := p.Containers[0].VolumeMounts, set.Spec.VolumeClaimTemplates[0]
	if set.Kind != "StatefulSet" || set.Spec.Replicas != 1 || len(mount) != 1 || mount[0].Name != claim.Metadata.Name || claim.Spec.AccessModes[0] != "ReadWriteOnce" {
		t.Errorf("%+v, %+v", set, mount)
	}
	disk := volume(t, "--opt=type=tmpfs", "--opt=device=tmpfs", fmt.Sprintf("--opt=o=size=64k,mode=2775,uid=0,gid=%d", p.SecurityContext.FSGroup))
	c := runPod(t, p, "--publish=127.0.0.1::8910", fmt.Sprintf("--group-add=%d", p.SecurityContext.FSGroup), "--volume="+disk+":"+mount[0].MountPath)
	c.await()
	health := c.url + p.Containers[0].ReadinessProbe.HTTPGet.Path
	address := strings.TrimPrefix(c.url, "http://")
	c.url = strings.Replace(c.url, "://", "://test:test@", 1)
	c.want("PUT", "/lock/a", `{"key": "k"}`, http.StatusOK)
	c.copyIn("fill", 1<<20)
	c.want("PUT", "/lock/b", `{"key": "k"}`, http.StatusInsufficientStorage)
	if status, body := lockertest.Send(t.Context(), "GET", health, ""); status != http.StatusServiceUnavailable {
		t.Errorf("readiness on a full disk: %d %s", status, body)
	}
	conn, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatalf("liveness on a full disk: %v", err)
	}
	conn.Close()
}

// The Deployment's two pods are ready, serve the same locks, and outlive each
// other.
func TestReleasedKubernetesSeveral(t *testing.T) {
	loadServerImage(t)
	etcd := lockertest.StartEtcd(t, 1)
	if _, err := docker(t, nil, slices.Concat([]string{"run", "--rm", "--network=host", "--env=LOCKER_ETCD=" + etcd.URLs[0]}, hardened, []string{serverImage, "import", "-empty"})...); err != nil {
		t.Fatal(err)
	}
	_, deployment := readResources(t, several)
	if deployment.Kind != "Deployment" || deployment.Spec.Replicas != 2 {
		t.Errorf("%+v", deployment)
	}
	p, port := deployment.Spec.Template.Spec, lockertest.FreePort(t)
	var pods []*container
	for _, ip := range []string{"127.0.0.2", "127.0.0.3"} {
		here := strings.NewReplacer("http://etcd:2379", etcd.URLs[0], "$(POD_IP)", ip, "8910", port)
		options := []string{"--network=host", "--env=LISTEN=" + ip + ":" + port}
		for _, v := range p.Containers[0].Env {
			options = append(options, "--env="+v.Name+"="+here.Replace(v.Value))
		}
		c := runPod(t, p, options...)
		c.url = "http://test:test@" + ip + ":" + port
		pods = append(pods, c)
	}
	ready := func(c *container) bool {
		status, _ := lockertest.Send(t.Context(), "GET", c.url+p.Containers[0].ReadinessProbe.HTTPGet.Path, "")
		return status == http.StatusOK
	}
	lockertest.Eventually(t, "both pods are ready", func() bool { return ready(pods[0]) && ready(pods[1]) })
	pods[0].want("PUT", "/lock/a", `{"key": "k"}`, http.StatusOK)
	pods[1].want("PUT", "/lock/a", `{"key": "other"}`, http.StatusLocked)
	pods[0].remove()
	lockertest.Eventually(t, "the other pod is ready", func() bool { return ready(pods[1]) })
	pods[1].want("PUT", "/lock/a", `{"key": "other"}`, http.StatusLocked)
	pods[1].want("DELETE", "/lock/a", `{"key": "k"}`, http.StatusOK)
}
