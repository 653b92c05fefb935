// In is Concourse's in of a locker-resource: it says who holds the lock.
package main

import "github.com/cloudfoundry-community/locker/resource"

func main() { resource.Main(resource.In) }
